# Net::SMTP, with Authen::SASL and IO::Socket::SSL.
use strict;
use warnings;
use Net::SMTP;

my @tls = (SSL_ca_file => $ENV{CA}, SSL_verifycn_name => $ENV{HOST});
my $smtp = Net::SMTP->new(
    $ENV{HOST},
    Port    => $ENV{PORT},
    Hello   => 'app.test',
    Timeout => 30,
    SSL     => $ENV{TLS} eq 'implicit',
    @tls,
) or die "no session: $@";
if ($ENV{TLS} eq 'starttls') { $smtp->starttls(@tls) or die 'no TLS: ' . $smtp->message }
if ($ENV{LOGIN}) { $smtp->auth($ENV{LOGIN}, $ENV{PASSWORD}) or die 'no login: ' . $smtp->message }
open my $mail, '<:raw', $ENV{MAIL} or die "$ENV{MAIL}: $!";
my @lines = <$mail>;
s/\r\n\z/\n/ for @lines;
$smtp->mail($ENV{SENDER}, Bits => 8) or die 'MAIL: ' . $smtp->message;
$smtp->to($ENV{TO}) or die 'RCPT: ' . $smtp->message;
$smtp->data(\@lines) or die 'DATA: ' . $smtp->message;
$smtp->quit;
