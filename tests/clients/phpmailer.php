<?php
// PHPMailer. What it handed over is written to OUT.
require '/usr/share/php/libphp-phpmailer/autoload.php';

use PHPMailer\PHPMailer\PHPMailer;

$mail = new PHPMailer(true);
$mail->isSMTP();
$mail->Host = getenv('HOST');
$mail->Port = (int) getenv('PORT');
$mail->Timeout = 30;
$mail->SMTPAutoTLS = false;
$mail->SMTPSecure = ['none' => '', 'starttls' => 'tls', 'implicit' => 'ssl'][getenv('TLS')];
$mail->SMTPOptions = ['ssl' => ['cafile' => getenv('CA')]];
$mail->SMTPAuth = getenv('LOGIN') !== '';
$mail->Username = getenv('LOGIN');
$mail->Password = getenv('PASSWORD');
$mail->CharSet = PHPMailer::CHARSET_UTF8;
$mail->Encoding = '8bit';
$mail->setFrom(getenv('SENDER'), 'Die App');
$mail->addAddress(getenv('TO'));
$mail->addCustomHeader('X-Token', getenv('TOKEN'));
$mail->Subject = 'Grüße';
$mail->Body = file_get_contents(getenv('TEXT'));
$mail->addStringAttachment(str_repeat("\x00\xff.\r\n", 500), 'bild.bin');
$mail->send();
file_put_contents(getenv('OUT'), $mail->getSentMIMEMessage());
