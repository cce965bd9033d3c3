// nodemailer: three mails through one connection of its pool, or one mail as it lies in a file.
const fs = require("fs");
const nodemailer = require("nodemailer");

const e = process.env;
const pool = e.POOL === "yes";
const transport = nodemailer.createTransport({
  host: e.HOST,
  port: Number(e.PORT),
  secure: e.TLS === "implicit",
  requireTLS: e.TLS === "starttls",
  ignoreTLS: e.TLS === "none",
  tls: { ca: fs.readFileSync(e.CA) },
  auth: e.LOGIN ? { user: e.LOGIN, pass: e.PASSWORD } : undefined,
  pool,
  maxConnections: 1,
});

const raw = fs.readFileSync(e.MAIL);
const numbered = (n) => Buffer.concat([Buffer.from(`X-Token: ${e.TOKEN}-${n}\r\n`), raw]);
const mails = pool ? [0, 1, 2].map(numbered) : [raw];
const envelope = { from: e.SENDER, to: [e.TO] };
Promise.all(mails.map((raw) => transport.sendMail({ envelope, raw })))
  .then(() => transport.close())
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
