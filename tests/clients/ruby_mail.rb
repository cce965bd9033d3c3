# The mail gem over net/smtp. What it handed over is written to OUT.
require "mail"

e = ENV
# net/smtp uses STARTTLS wherever it is offered, whatever is said here.
port = e["TLS"] == "none" ? e["CLEAR"] : e["PORT"]
settings = { address: e["HOST"], port: port.to_i, domain: "app.test", open_timeout: 30, read_timeout: 30 }
settings[:enable_starttls] = e["TLS"] == "starttls"
settings[:enable_starttls_auto] = false
settings[:tls] = true if e["TLS"] == "implicit"
settings.merge!(user_name: e["LOGIN"], password: e["PASSWORD"], authentication: :plain) unless e["LOGIN"].empty?

text = File.read(e["TEXT"], encoding: "UTF-8")
mail = Mail.new(charset: "UTF-8") do
  from e["SENDER"]
  to e["TO"]
  subject "Grüße"
  body text
end
mail["X-Token"] = e["TOKEN"]
mail.add_file(filename: "bild.bin", content: (0..255).to_a.pack("C*") * 16)
mail.delivery_method :smtp, settings
mail.deliver!
File.binwrite(e["OUT"], mail.encoded)
