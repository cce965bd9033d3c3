// Opens every page in Chromium, in light and dark, on a desktop and a phone; does what people do with them; and says
// what is wrong: complaints of the console, breaches of the content policy, faults that axe finds, anything hostile
// that ran, anything that stands out of the page. What to look at comes as JSON on standard input; what was looked at
// goes to standard output, pictures to a directory.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const order = JSON.parse(readFileSync(0, "utf8"));
const require = createRequire(join(order.modules, "x.js"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const wrong = [];
let pages = 0;
const browser = await chromium.launch({ executablePath: order.chromium, args: ["--no-sandbox", "--disable-dev-shm-usage"] });

/// A visitor with a window of some size and taste. What their browser complains about is wrong, unless expected.
async function visitor(name, base, options) {
  const context = await browser.newContext({ baseURL: base, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(60000);
  let expected = () => false;
  const complain = (what) => { if (!expected(what)) wrong.push(`${name} ${page.url()}: ${what}`); };
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) complain(message.text()); });
  page.on("pageerror", (error) => complain(String(error)));
  page.on("dialog", (dialog) => { complain(`a dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("response", (answer) => { if (answer.status() >= 500) complain(`${answer.status()} of ${answer.url()}`); });
  return { name, page, context, expect: (test) => { expected = test; } };
}

/// Looks at the page that is open.
async function look(who, picture) {
  pages += 1;
  const { page, name } = who;
  const title = await page.title();
  if (title === "owned") wrong.push(`${name} ${page.url()}: a script of a message has run`);
  const width = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  if (width > 0) wrong.push(`${name} ${page.url()}: ${width} pixels stand out at the right`);
  const strange = await page.evaluate(() => document.querySelectorAll("script:not([src]), [style], [onload], [onerror], main img:not([src='/icon.svg']), main b, main i").length);
  if (strange) wrong.push(`${name} ${page.url()}: ${strange} elements that no page of ours has`);
  if (picture) await page.screenshot({ path: join(order.pictures, `${picture}.png`), fullPage: true });
  // By the debugger, which no policy binds.
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document, { iframes: false, resultTypes: ["violations"] }));
  for (const fault of found.violations.filter((fault) => ["serious", "critical"].includes(fault.impact))) {
    wrong.push(`${name} ${page.url()}: axe: ${fault.id}: ${fault.help}: ${fault.nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(" | ")}`);
  }
}

function check(is, what) {
  if (!is) wrong.push(what);
}

const desktop = { width: 1280, height: 800 }, phone = { width: 390, height: 844 };
const looks = [
  ["light", { colorScheme: "light", viewport: desktop }],
  ["dark", { colorScheme: "dark", viewport: desktop }],
  ["phone", { colorScheme: "light", viewport: phone, isMobile: true, hasTouch: true }],
];

// What the policy of a message's frame keeps out is told on the console: that is the policy at work.
const kept = (what) => /Content Security Policy|Refused to|Blocked script execution|violates the following|sandboxed/.test(what);

async function local(who) {
  const { page, name } = who;
  const visit = async (path, picture) => { await page.goto(path); await look(who, picture && `dev-${picture}-${name}`); };
  await visit("/", "overview");
  await visit(`/?range=${{ light: "24h", dark: "7d", phone: "30d" }[name]}`);
  await visit("/queue", "queue-empty");
  await visit("/dev", "mail");
  await visit("/dev/2", "text");
  for (const view of ["header", "attachments", "source"]) await visit(`/dev/1?view=${view}`, `hostile-${view}`);
  await visit("/dev/1?view=text");
  who.expect(kept);
  await page.goto("/dev/1");
  await page.frameLocator("iframe").locator("h1").waitFor();
  await look(who, `dev-hostile-html-${name}`);
  const frame = page.frames().find((one) => one.url().endsWith("/html"));
  const seen = await frame.locator("img").first().evaluate((picture) => [picture.src.slice(0, 22), picture.naturalWidth]);
  check(seen[0].startsWith("data:image/png;base64,") && seen[1] === 1, `${name}: the picture that came with the message: ${seen}`);
  await page.goto("/dev/1?view=text");
  who.expect(() => false);
}

async function attachment(who) {
  const { page } = who;
  await page.goto("/dev/1?view=attachments");
  const waiting = page.waitForEvent("download");
  await page.locator("ul.files a").last().click();
  const name = (await waiting).suggestedFilename();
  check(!/[<>\/\\\u202E]/.test(name) && name.length > 0, `the attachment is saved as ${name}`);
  const answer = await page.request.get("/dev/1/part/1");
  const fields = answer.headers();
  check(fields["content-type"] === "application/octet-stream" && fields["content-disposition"].startsWith("attachment;") && fields["x-content-type-options"] === "nosniff", `the attachment comes with ${JSON.stringify(fields)}`);
}

async function live(who) {
  const { page } = who;
  await page.goto("/");
  const before = await page.locator("#arrived li").count();
  await page.evaluate(() => { window.same = true; });
  await sendMail(order.dev.smtp, "While you look");
  await page.locator("#arrived li", { hasText: "While you look" }).waitFor();
  check(await page.locator("#arrived li").count() === before + 1 && await page.evaluate(() => window.same === true), "the page is not kept fresh in its place");
}

async function empty(who) {
  const { page } = who;
  await page.goto("/dev");
  await page.getByRole("link", { name: "Empty" }).click();
  await look(who, `dev-empty-ask-${who.name}`);
  await page.getByRole("button", { name: /Forget/ }).click();
  await page.getByText("Nothing has arrived yet").waitFor();
  await look(who, `dev-mail-empty-${who.name}`);
}

async function served(who) {
  const { page, name } = who;
  const { waiting, gone, password } = order.relay;
  const visit = async (path, picture) => { await page.goto(path); await look(who, picture && `serve-${picture}-${name}`); };
  await visit("/queue", "login");
  check(page.url().includes("/login"), `${name}: no login is asked for`);
  await page.keyboard.type(password);
  await page.keyboard.press("Enter");
  await page.waitForURL("**/queue");
  await look(who, `serve-queue-${name}`);
  await visit("/", "overview");
  await visit(`/queue/${waiting[1]}`, "message");
  await visit(`/queue/${waiting[0]}`);
  await visit(`/queue/${gone}`, "gone");
  await visit("/queue?state=held");
  await visit("/queue?recipient=nobody%40example.org", "none");
  who.expect((what) => what.includes("404") || what.includes("400"));
  await visit("/queue?older_than=soon", "wrong");
  await visit("/queue/01HXYZ0000ABC", "missing");
  who.expect(() => false);
}

/// All of it by the keyboard, and without the script.
async function acted(who, id, verb, said) {
  const { page, name } = who;
  await page.goto(`/queue/${id}`);
  await page.getByRole("button", { name: verb }).focus();
  await page.keyboard.press("Enter");
  await page.waitForURL("**/queue/confirm*");
  await look(who, `serve-confirm-${verb.split(" ")[0].toLowerCase()}-${name}`);
  await page.locator("form.decide button").focus();
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: said }).waitFor();
  await look(who, `serve-done-${verb.split(" ")[0].toLowerCase()}-${name}`);
}

async function picked(who) {
  const { page } = who;
  await page.goto("/queue");
  await page.getByLabel("Select all here").check();
  const boxes = await page.locator("input[name=id]:checked").count();
  check(boxes > 1, `${boxes} boxes are checked`);
  await page.locator("select[name=action]").selectOption("hold");
  await page.getByRole("button", { name: "Go on" }).click();
  await page.getByRole("heading", { name: `Hold ${boxes} messages?` }).waitFor();
  await look(who, `serve-confirm-many-${who.name}`);
  await page.getByRole("button", { name: /Hold/ }).click();
  await page.getByText("Back to the queue").waitFor();
}

/** Whatever is in the queue, without a box checked. */
async function all(who) {
  const { page } = who;
  await page.goto("/queue");
  await page.locator("select[name=action]").selectOption("release");
  await page.locator("select[name=scope]").selectOption("all");
  await page.getByRole("button", { name: "Go on" }).click();
  await page.getByRole("heading", { name: /Release (all )?[0-9]+ messages/ }).waitFor();
  await look(who, `serve-confirm-all-${who.name}`);
  await page.getByRole("button", { name: /Release/ }).click();
  await page.getByText("Back to the queue").waitFor();
  await page.goto("/queue?state=held");
  check(await page.locator("input[name=id]").count() === 0, "some messages are held still");
}

/** A queued message, as it was handed in. */
async function raw(who, id) {
  const { page } = who;
  await page.goto(`/queue/${id}`);
  const waiting = page.waitForEvent("download");
  await page.getByRole("link", { name: "Download", exact: true }).click();
  const download = await waiting;
  check(download.suggestedFilename() === `${id}.eml`, `it is saved as ${download.suggestedFilename()}`);
  const { readFile } = await import("node:fs/promises");
  const text = String(await readFile(await download.path()));
  check(text.includes("\r\n\r\n<b>text</b> ") && text.includes("Subject: mail "), `what was saved is ${text}`);
}

async function sendMail(port, subject) {
  const { connect } = await import("node:net");
  const lines = ["EHLO x", "MAIL FROM:<app@example.test>", "RCPT TO:<you@example.test>", "DATA", `Subject: ${subject}\r\n\r\nHello\r\n.`, "QUIT"];
  await new Promise((resolve, reject) => {
    const socket = connect(port, "127.0.0.1");
    let heard = "";
    socket.on("data", (data) => {
      heard += data;
      if (/^\d{3} .*\r\n$/m.test(heard.split("\r\n").slice(-2).join("\r\n"))) {
        heard = "";
        const line = lines.shift();
        if (line === undefined) socket.end(); else socket.write(`${line}\r\n`);
      }
    });
    socket.on("close", resolve);
    socket.on("error", reject);
  });
}

const devBase = `http://127.0.0.1:${order.dev.admin}`, relayBase = `http://127.0.0.1:${order.relay.admin}`;
const started = Date.now();
try {
  await Promise.all(looks.map(async ([name, options]) => {
    const who = await visitor(name, devBase, options);
    await local(who);
    await who.context.close();
  }));
  const reader = await visitor("light", devBase, looks[0][1]);
  await attachment(reader);
  await live(reader);
  await empty(reader);
  await reader.context.close();
  const keepers = await Promise.all(looks.map(async ([name, options]) => {
    const who = await visitor(name, relayBase, options);
    await served(who);
    return who;
  }));
  const [light, dark] = keepers;
  await acted(light, order.relay.waiting[1], "Try again now", /1 message tried again/);
  await acted(dark, order.relay.waiting[2], "Return to the sender", /1 message returned to the sender/);
  await acted(light, order.relay.waiting[3], "Delete", /1 message deleted/);
  await acted(light, order.relay.waiting[0], "Release", /1 message released/);
  await acted(light, order.relay.waiting[0], "Hold", /1 message held/);
  await raw(light, order.relay.waiting[0]);
  await picked(light);
  await all(light);
  await light.page.getByRole("link", { name: "Overview" }).click();
  await light.page.getByRole("button", { name: "Log out" }).click();
  await light.page.getByLabel("Password").waitFor();

  const plain = await visitor("without script", relayBase, { javaScriptEnabled: false, viewport: desktop });
  await plain.page.goto("/");
  await plain.page.getByLabel("Password").fill(order.relay.password);
  await plain.page.getByRole("button", { name: "Log in" }).click();
  await plain.page.goto("/queue");
  await plain.page.locator("input[name=id]").first().check();
  await plain.page.locator("select[name=action]").selectOption("delete");
  await plain.page.getByRole("button", { name: "Go on" }).click();
  await plain.page.getByRole("button", { name: "Delete 1 message" }).click();
  await plain.page.getByRole("heading", { name: "1 message deleted" }).waitFor();
} catch (error) {
  wrong.push(String(error.stack ?? error));
} finally {
  await browser.close();
}
if (wrong.length) {
  console.error([...new Set(wrong)].join("\n"));
  process.exit(1);
}
console.log(JSON.stringify({ pages, seconds: (Date.now() - started) / 1000 }));
