// Go's net/smtp.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"log"
	"net"
	"net/smtp"
	"os"
)

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	host, ways := os.Getenv("HOST"), os.Getenv("TLS")
	address := net.JoinHostPort(host, os.Getenv("PORT"))
	pem, err := os.ReadFile(os.Getenv("CA"))
	must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	config := &tls.Config{ServerName: host, RootCAs: roots}
	mail, err := os.ReadFile(os.Getenv("MAIL"))
	must(err)

	var connection net.Conn
	if ways == "implicit" {
		connection, err = tls.Dial("tcp", address, config)
	} else {
		connection, err = net.Dial("tcp", address)
	}
	must(err)
	client, err := smtp.NewClient(connection, host)
	must(err)
	must(client.Hello("app.test"))
	if ways == "starttls" {
		must(client.StartTLS(config))
	}
	if login := os.Getenv("LOGIN"); login != "" {
		must(client.Auth(smtp.PlainAuth("", login, os.Getenv("PASSWORD"), host)))
	}
	must(client.Mail(os.Getenv("SENDER")))
	must(client.Rcpt(os.Getenv("TO")))
	data, err := client.Data()
	must(err)
	_, err = data.Write(mail)
	must(err)
	must(data.Close())
	must(client.Quit())
}
