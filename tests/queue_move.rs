//! A queue leaves its host as an archive or a backup, and comes back: whole, with all that was known of each
//! message, and nothing of it twice, whatever is cut, damaged, forged or killed on the way.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use outpost::admin::archive::{END, Half, header, padding};
use outpost::queue::QueueId;
use serde_json::Value;

use support::client::{letter, message_with};
use support::relay::{Relay, outpost};
use support::service::{Home, Service};
use support::upstream::Upstream;
use support::{ports, wait};

const PASSWORD: &str = "upstream-sesame-4711";

/// A relay whose upstream isn't there, so that mail stays.
fn lonely() -> Service {
    Service::mailer()
        .set("smtp_relay_server", "127.0.0.1")
        .set("smtp_relay_port", ports::free())
        .set("smtp_relay_tls", "none")
        .set("smtp_queue_min_free", "1MB")
        .set("smtp_retry", "1h..2h")
}

/// One that was never started.
fn fresh() -> Relay {
    let service = lonely();
    Relay::of(&Home::new(&[&service]), &service)
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ends by itself")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn items(relay: &Relay) -> Vec<Value> {
    let told = relay.told(&["queue", "list", "--json", "--all"]);
    let list: Value = serde_json::from_str(&told).expect("JSON");
    list["items"].as_array().expect("items").clone()
}

fn ids(relay: &Relay) -> Vec<String> {
    items(relay).iter().map(|item| item["id"].as_str().expect("an id").to_owned()).collect()
}

fn cat(relay: &Relay, id: &str) -> Vec<u8> {
    relay.cli(&["queue", "cat", id]).stdout
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// What a command with `--json` printed, however it ended.
fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("JSON: {}", said(output)))
}

/// Some small messages in an archive, and their ids.
fn archive(relay: &Relay, number: usize) -> (PathBuf, Vec<String>) {
    let mut client = relay.client();
    for n in 0..number {
        client
            .send("app@sender.example", &["user@rcpt.example"], &message_with(&format!("t{n}")))
            .expect("taken");
    }
    let file = relay.home.path(&format!("{number}.tar"));
    let told = relay.told(&["queue", "export", "-o", &text(&file)]);
    assert!(told.starts_with(&format!("{number} message")), "{told}");
    (file, ids(relay))
}

#[test]
fn a_queue_moves_with_all_that_is_known_of_each_message_and_nobody_gets_it_twice() {
    let upstream = Upstream::start(PASSWORD);
    upstream.set(|behaviour| {
        for late in ["late@rcpt.example", "later@rcpt.example"] {
            behaviour.recipients.insert(late.into(), "450 4.2.1 come back tomorrow".into());
        }
    });
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_retry", "1h..2h");
    let here = Relay::start(&service);
    let mut client = here.client();
    let rcpts = [
        "<done@rcpt.example> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;first@rcpt.example",
        "<late@rcpt.example> NOTIFY=NEVER",
        "<later@rcpt.example>",
    ];
    let mail = "<app@sender.example> RET=HDRS ENVID=QQ314159 BODY=8BITMIME";
    client.send_as(mail, &rcpts, &message_with("wishes").replace("The body", "Grüße")).expect("taken");
    client.send("app@sender.example", &["late@rcpt.example"], &letter("large", 20_000_000)).expect("taken");
    client.send("app@sender.example", &["late@rcpt.example"], &message_with("held")).expect("taken");
    wait::until_true("all were tried", || {
        items(&here).iter().all(|item| item["recipients"][0]["attempts"] == 1)
    });
    let all = ids(&here);
    here.told(&["queue", "hold", &all[2]]);

    let file = here.home.path("queue.tar");
    let told = here.told(&["queue", "export", "-o", &text(&file)]);
    assert!(told.starts_with("3 messages exported (20."), "{told}");
    let again = here.cli(&["queue", "export", "-o", &text(&file)]);
    assert_eq!(code(&again), 73, "nothing is written over: {}", said(&again));
    let names = outpost::admin::archive::header(all[0].parse().expect("an id"), Half::Record, 0);
    assert_eq!(fs::read(&file).expect("the archive")[..17], names[..17], "any tar reads it");

    // On a host where no relay ran yet.
    let upstream = Upstream::start(PASSWORD);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD).set("smtp_retry", "1h..2h");
    let mut there = Relay::of(&Home::new(&[&service]), &service);
    let would = there.told(&["queue", "import", "--dry-run", &text(&file)]);
    assert!(would.starts_with("3 messages would be imported"), "{would}");
    assert!(items(&there).is_empty());
    let told = there.told(&["queue", "import", &text(&file)]);
    assert!(told.starts_with("3 messages imported"), "{told}");
    for (before, after) in items(&here).iter().zip(items(&there)) {
        assert_eq!(*before, after);
        let id = before["id"].as_str().expect("an id");
        assert_eq!(cat(&here, id), cat(&there, id), "{id}: octet for octet");
    }
    let handled: [Value; 2] = [&here, &there].map(|relay| {
        let copy = relay.home.path("one.tar");
        relay.told(&["queue", "export", &all[0], "-o", &text(&copy)]);
        let octets = fs::read(copy).expect("an archive");
        let end = octets[512..].iter().position(|octet| *octet == 0).expect("padding");
        serde_json::from_slice(&octets[512..512 + end]).expect("JSON")
    });
    assert_eq!(handled[0]["message"]["handling"], handled[1]["message"]["handling"]);
    assert_eq!(handled[0]["message"]["handling"]["envid"], "QQ314159");
    assert_eq!(handled[0]["message"]["recipients"][0], handled[1]["message"]["recipients"][0]);

    let twice = there.told(&["queue", "import", &text(&file)]);
    assert_eq!(twice, "0 messages imported (0 B), 3 queued here already\n");
    there.up();
    there.told(&["queue", "release", &all[2]]);
    there.told(&["queue", "retry", "--all", "--yes"]);
    there.wait_for_empty_queue();
    let ledger = upstream.ledger();
    assert_eq!(["wishes", "large", "held"].map(|token| ledger.get(token).copied()), [Some(1); 3]);
    let recipients: BTreeSet<usize> = upstream.arrivals().iter().map(|arrival| arrival.recipients).collect();
    assert_eq!(recipients, BTreeSet::from([1, 2]), "who was reached before is not reached again");
    let octets = cat(&here, &all[1]);
    assert!(upstream.messages().contains(&octets), "20 MB arrive as they were");
    let gone = there.told(&["queue", "import", &text(&file)]);
    assert_eq!(gone, "0 messages imported (0 B), 3 left this queue already\n");
    let still = here.told(&["queue", "import", &text(&file), "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&still).expect("JSON")["queued"], 3);
    let history = there.told(&["logs", &all[1]]);
    assert!(history.contains("imported") && history.contains("delivered"), "{history}");
}

#[test]
fn what_comes_by_a_pipe_can_be_held_and_what_was_deleted_comes_back() {
    let here = Relay::start(&lonely());
    let (_, all) = archive(&here, 3);
    let exported = here.cli(&["queue", "export", "--sender", "@sender.example"]);
    assert!(exported.status.success() && said(&exported).contains("3 messages exported"));
    here.told(&["queue", "delete", &all[0], &all[1]]);
    let mut import = outpost()
        .args(["queue", "import", "-", "--hold"])
        .args(here.whereabouts())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    std::io::Write::write_all(&mut import.stdin.take().expect("a pipe"), &exported.stdout).expect("it reads");
    let done = import.wait_with_output().expect("it ends");
    assert!(
        said(&done).contains("2 messages imported") && said(&done).contains("1 queued"),
        "{}",
        said(&done)
    );
    let states: Vec<Value> = items(&here).iter().map(|item| item["state"].clone()).collect();
    assert_eq!(states, ["held", "held", "deferred"].map(Value::from));
}

#[test]
fn a_cut_or_damaged_archive_gives_what_is_whole_and_can_be_imported_again() {
    let here = Relay::start(&lonely());
    let (file, all) = archive(&here, 20);
    let whole = fs::read(&file).expect("the archive");
    let there = fresh();
    let part = there.home.path("part.tar");
    fs::write(&part, &whole[..whole.len() / 2]).expect("a file");
    let done = there.cli(&["queue", "import", &text(&part), "--json"]);
    let imported = json(&done)["imported"].as_u64().expect("a number");
    assert!(code(&done) == 65 && (5..15).contains(&imported), "{}", said(&done));
    assert!(said(&done).contains("ends in the middle"), "{}", said(&done));
    // Cut where a message ends: nothing is missing but the end.
    fs::write(&part, &whole[..whole.len() - END.len()]).expect("a file");
    let done = there.cli(&["queue", "import", &text(&part), "--json"]);
    assert_eq!((code(&done), json(&done)["imported"].as_u64()), (65, Some(20 - imported)), "{}", said(&done));
    assert_eq!(ids(&there), all);

    let there = fresh();
    let mut damaged = whole.clone();
    let find = |words: &[u8]| whole.windows(words.len()).position(|some| some == words).expect("there");
    damaged[find(b"The body of t3")] ^= 1;
    damaged[find(b"The body of t7") - 1] = b' ';
    fs::write(&part, &damaged).expect("a file");
    let done = there.cli(&["queue", "import", &text(&part)]);
    let words = said(&done);
    assert!(
        code(&done) == 65 && words.contains("18 messages imported") && words.contains("2 refused"),
        "{words}"
    );
    assert!(words.contains(&format!("{}: its content", all[3])) && words.contains("checksum"), "{words}");
    damaged = whole.clone();
    let at = find(format!("{}.json", all[10]).as_bytes());
    damaged[at] ^= 1;
    fs::write(&part, &damaged).expect("a file");
    let there = fresh();
    let done = there.cli(&["queue", "import", &text(&part)]);
    let words = said(&done);
    assert!(code(&done) == 65 && words.contains("10 messages imported"), "{words}");
    assert!(words.contains(&format!("at octet {at}")), "{words}");
    there.told(&["queue", "import", &text(&file)]);
    assert_eq!(ids(&there), all);
}

/// Members of an archive, as they are to be forged.
fn forged(members: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut octets = Vec::new();
    for (header, content) in members {
        octets.extend_from_slice(header);
        octets.extend_from_slice(content);
        octets.extend_from_slice(&padding(content.len() as u64));
    }
    octets.extend_from_slice(&END);
    octets
}

/// A header with any name and kind.
fn named(name: &str, kind: u8, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[test]
fn what_is_forged_is_refused_entry_by_entry() {
    let here = Relay::start(&lonely());
    let (file, all) = archive(&here, 1);
    let whole = fs::read(&file).expect("the archive");
    let size =
        |at: usize| tar::Header::from_byte_slice(&whole[at..at + 512]).entry_size().expect("a size") as usize;
    let record = &whole[512..512 + size(0)];
    let second = (512 + size(0)).next_multiple_of(512);
    let content = &whole[second + 512..second + 512 + size(second)];
    let id: QueueId = all[0].parse().expect("an id");
    let head = |half, octets: &[u8]| header(id, half, octets.len() as u64).to_vec();
    let changed = |from: &str, to: &str| {
        let text = String::from_utf8(record.to_vec()).expect("JSON");
        assert!(text.contains(from), "{from}: {text}");
        text.replacen(from, to, 1).into_bytes()
    };
    let there = Relay::start(&lonely());
    let evil = there.home.path("evil.tar");
    let import = |octets: Vec<u8>| {
        fs::write(&evil, octets).expect("a file");
        let done = there.cli(&["queue", "import", &text(&evil), "--json"]);
        (code(&done), json(&done)["imported"].as_u64().expect("a number"), said(&done))
    };
    let bare = b"Subject: x\r\n\r\n.\nMAIL FROM:<a@b.example>\r\n";
    let smuggled = changed(&format!("\"size\": {}", content.len()), &format!("\"size\": {}", bare.len()));
    let sum = crc32c::crc32c(content).to_string();
    let smuggled =
        String::from_utf8(smuggled).expect("JSON").replacen(&sum, &crc32c::crc32c(bare).to_string(), 1);
    for (what, why, octets) in [
        ("a way out", "not a message", forged(&[(&named("../../evil", b'0', 3), b"abc")])),
        ("an absolute name", "not a message", forged(&[(&named("/etc/evil.json", b'0', 3), b"abc")])),
        ("a link", "not a message", forged(&[(&named(&format!("{id}.json"), b'2', 0), b"")])),
        ("content alone", "no record", forged(&[(&head(Half::Content, content), content)])),
        ("a record alone", "content is missing", forged(&[(&head(Half::Record, record), record)])),
        (
            "a smuggled end of line",
            "bare CR or LF",
            forged(&[
                (&head(Half::Record, smuggled.as_bytes()), smuggled.as_bytes()),
                (&head(Half::Content, bare), bare),
            ]),
        ),
    ] {
        let (code, imported, words) = import(octets);
        assert!(code == 65 && imported == 0 && words.contains(why), "{what}: {words}");
    }
    let injected = changed("user@rcpt.example", "user@rcpt.example\\r\\nRCPT TO:<a@b.example>");
    let (code, imported, words) = import(forged(&[
        (&head(Half::Record, &injected), &injected),
        (&head(Half::Content, content), content),
        // And behind it the true one, twice.
        (&head(Half::Record, record), record),
        (&head(Half::Content, content), content),
        (&head(Half::Record, record), record),
        (&head(Half::Content, content), content),
    ]));
    assert!(code == 65 && imported == 1 && words.contains("control characters"), "{words}");
    assert!(words.contains("\"queued\": 1"), "a name that stands there twice: {words}");
    // Sizes that nothing could hold.
    let huge = header(id, Half::Record, u64::MAX / 2).to_vec();
    let (code, imported, words) = import(forged(&[(&huge, b"{}")]));
    assert!(code == 65 && imported == 0 && words.contains("too long"), "{words}");
    assert_eq!(there.queue().len(), 1);
}

#[test]
fn an_import_that_is_killed_while_mail_comes_in_is_done_again_and_each_message_is_there_once() {
    let here = Relay::start(&lonely());
    let (file, all) = archive(&here, 1_500);
    let mut there = Relay::start(&lonely());
    let import = |relay: &Relay| {
        let mut command = outpost();
        command.args(["queue", "import", &text(&file)]).args(relay.whereabouts());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs")
    };
    let importing = import(&there);
    let mut client = there.client();
    let mut new = 0;
    wait::until_true("some were imported", || {
        client.send_token(&format!("new{new}")).expect("taken");
        new += 1;
        there.queue().len() > new + 100
    });
    there.kill9();
    let broken = importing.wait_with_output().expect("it ends");
    assert!(code(&broken) == 69 || broken.status.success(), "{}", said(&broken));
    there.up();
    let done = import(&there).wait_with_output().expect("it ends");
    assert!(done.status.success() && said(&done).contains("queued here already"), "{}", said(&done));
    let now = ids(&there);
    let wanted: BTreeSet<&String> = all.iter().collect();
    assert_eq!(now.len(), all.len() + new);
    assert_eq!(now.iter().filter(|id| wanted.contains(id)).count(), all.len());

    // The one that imports is killed, with the queue of a stopped relay in its hands.
    let stopped = fresh();
    for _ in 0..3 {
        let mut importing = import(&stopped);
        std::thread::sleep(std::time::Duration::from_millis(100));
        importing.kill().expect("our child");
        importing.wait().expect("it ends");
    }
    stopped.told(&["queue", "import", &text(&file)]);
    assert_eq!(ids(&stopped), all);
    assert!(stopped.told(&["queue", "check"]).contains("all is whole"));
}

#[test]
fn an_import_stops_in_words_where_there_is_no_room() {
    let here = Relay::start(&lonely());
    let (file, _) = archive(&here, 10);
    let there = Relay::start(&lonely().set("smtp_queue_max_messages", 4));
    let done = there.cli(&["queue", "import", &text(&file)]);
    assert!(code(&done) == 75 && said(&done).contains("smtp_queue_max_messages"), "{}", said(&done));
    assert_eq!(there.queue().len(), 4);
}

/// A stopped relay with large and small mail, and where its queue lies.
fn stopped() -> (Relay, PathBuf) {
    let mut relay = Relay::start(&lonely());
    let mut client = relay.client();
    for n in 0..30 {
        client
            .send("app@sender.example", &["user@rcpt.example"], &letter(&format!("t{n}"), 3_000))
            .expect("taken");
    }
    client.send("app@sender.example", &["user@rcpt.example"], &letter("large", 400_000)).expect("taken");
    relay.terminate();
    let directory = relay.data().join("queue");
    (relay, directory)
}

fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .expect("a directory")
        .chain(fs::read_dir(directory.join("spool")).expect("the spool"))
        .map(|file| file.expect("a file").path())
        .filter(|path| path.is_file() && !text(path).ends_with("-shm") && !text(path).ends_with("-wal"))
        .map(|path| (path.clone(), fs::read(path).expect("a file")))
        .collect();
    files.sort();
    files
}

#[test]
fn a_check_finds_each_damage_and_changes_nothing() {
    let (mut relay, directory) = stopped();
    let check = |relay: &Relay| {
        let output = relay.cli(&["queue", "check", "--json"]);
        (code(&output), json(&output))
    };
    let (code_, told) = check(&relay);
    assert_eq!((code_, &told["messages"], &told["damaged"]), (0, &31.into(), &0.into()), "{told}");
    assert!(relay.told(&["queue", "check"]).starts_with("31 messages checked"));
    let database = directory.join("queue.sqlite");
    let spooled = fs::read_dir(directory.join("spool"))
        .expect("the spool")
        .next()
        .expect("one")
        .expect("a file")
        .path();
    let (sound, large) = (fs::read(&database).expect("a file"), fs::read(&spooled).expect("a file"));
    let find = |words: &str| {
        let found = sound.windows(words.len()).position(|some| some == words.as_bytes());
        found.unwrap_or_else(|| panic!("{words} is in the database"))
    };
    // Wherever it stands: what was changed leaves its old form behind in free pages.
    let flip = |words: &str| {
        let mut octets = sound.clone();
        let mut at = find(words);
        while let Some(next) = octets[at..].windows(words.len()).position(|some| some == words.as_bytes()) {
            at += next;
            octets[at + 1] ^= 1;
        }
        octets
    };
    let mut garbage = sound.clone();
    let page = find("3 of t9 ") / 4096 * 4096;
    garbage[page..page + 4096].fill(0xAA);
    let mut beheaded = sound.clone();
    beheaded[..4096].fill(0xAA);
    for (octets, words) in [
        (flip("\"app@sender.example\""), "its record is damaged"),
        (flip("2 of t5 "), "its content is damaged"),
        (garbage, ""),
        (beheaded, "not a database"),
    ] {
        fs::write(&database, octets).expect("a file");
        let before = contents(&directory);
        let (code, told) = check(&relay);
        assert!(code == 65 && told["damaged"].as_u64() > Some(0), "{words}: {told}");
        assert!(told["problems"].to_string().contains(words), "{words}: {told}");
        assert!(before == contents(&directory), "{words}: it was only looked at");
    }
    fs::write(&database, &sound).expect("a file");
    let mut flipped = large.clone();
    flipped[200_000] ^= 1;
    for (octets, words) in [
        (Some(flipped), "its content is damaged"),
        (Some(large[1..].to_vec()), "instead of"),
        (None, "missing"),
    ] {
        fs::remove_file(&spooled).expect("a file");
        if let Some(octets) = octets {
            fs::write(&spooled, octets).expect("a file");
        }
        let output = relay.cli(&["queue", "check"]);
        assert!(code(&output) == 65 && said(&output).contains(words), "{words}: {}", said(&output));
        assert!(said(&output).contains("help: look at the disk"), "{}", said(&output));
        let id = spooled.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(said(&output).contains(&id));
        fs::write(&spooled, &large).expect("a file");
    }
    fs::write(directory.join("spool/0123456789ABC"), "left by a crash").expect("a file");
    let told = relay.told(&["queue", "check"]);
    assert!(told.contains("all is whole") && told.contains("1 file of mail"), "{told}");

    // The same while it runs.
    relay.up();
    assert_eq!(check(&relay).0, 0);
    let mut flipped = large;
    flipped[200_000] ^= 1;
    fs::write(&spooled, flipped).expect("a file");
    let (code, told) = check(&relay);
    assert!(code == 65 && told["damaged"] == 1, "{told}");
    let exported = relay.cli(&["queue", "export", "-o", &text(&relay.home.path("some.tar")), "--json"]);
    assert_eq!(self::code(&exported), 65, "what is damaged is named: {}", said(&exported));
    assert_eq!(
        (&json(&exported)["messages"], json(&exported)["damaged"].as_array().map(Vec::len)),
        (&30.into(), Some(1))
    );
    let nowhere = outpost().args(["queue", "check", "--data", "/nowhere"]).output().expect("it runs");
    assert_eq!(self::code(&nowhere), 69);
}

#[test]
fn a_backup_made_while_mail_comes_in_opens_as_a_queue_and_delivers_what_was_queued() {
    let mut here = Relay::start(&lonely());
    let mut client = here.client();
    for n in 0..40 {
        client.send_token(&format!("t{n}")).expect("taken");
    }
    client.send("app@sender.example", &["user@rcpt.example"], &letter("large", 500_000)).expect("taken");
    let before = ids(&here);

    let upstream = Upstream::start(PASSWORD);
    let service = upstream.upstream_of(Service::mailer(), PASSWORD);
    let mut there = Relay::of(&Home::new(&[&service]), &service);
    fs::create_dir(there.data()).expect("a directory");
    let to = there.data().join("queue");
    let making = outpost()
        .args(["queue", "backup", &text(&to), "--json"])
        .args(here.whereabouts())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    for n in 0..40 {
        client.send_token(&format!("n{n}")).expect("mail is taken meanwhile");
    }
    let made = making.wait_with_output().expect("it ends");
    assert!(made.status.success(), "{}", said(&made));
    let made = json(&made);
    let number = made["messages"].as_u64().expect("a number") as usize;
    assert!((before.len()..=before.len() + 40).contains(&number) && made["history"] == true, "{made}");
    assert_eq!((&made["files"], &made["copied"]), (&1.into(), &0.into()), "large content is linked: {made}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&to).expect("made").permissions());
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(fs::read_dir(there.data()).expect("a directory").count(), 1, "nothing lies beside it");

    let refused = here.cli(&["queue", "backup", &text(&to)]);
    assert!(code(&refused) == 73 && said(&refused).contains("new directory"), "{}", said(&refused));
    assert!(there.told(&["queue", "check"]).contains("all is whole"));
    assert_eq!(there.told(&["logs", &before[0]]), here.told(&["logs", &before[0]]), "with the history");

    there.up();
    there.wait_for_empty_queue();
    let ledger = upstream.ledger();
    assert_eq!(upstream.arrived(), number);
    assert!((0..40).all(|n| ledger.get(&format!("t{n}")) == Some(&1)) && ledger.get("large") == Some(&1));
    assert_eq!(here.queue().len(), before.len() + 40, "what is here is untouched");

    // Of one that is stopped, all of it.
    here.terminate();
    let empty = here.home.path("backup");
    fs::create_dir(&empty).expect("a directory");
    let told = here.told(&["queue", "backup", &text(&empty)]);
    assert!(told.starts_with(&format!("{} messages", before.len() + 40)), "{told}");
    assert!(here.told(&["queue", "check"]).contains("all is whole"));
}
