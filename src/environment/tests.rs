//! What is published: each format, written whole or not at all, and never readable by others.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command, thread};

use super::*;

/// As bad as passwords get.
const HOSTILE: &str = r#"p'"$HOME`id`\|&[ü #!%{}:@/?*~ end\"#;

fn mailer() -> Published {
    Published {
        service: "mailer".into(),
        host: "10.0.0.7".into(),
        port: 587,
        login: "dotcloud".into(),
        password: HOSTILE.into(),
        tls: "starttls",
        fingerprint: Some("ab".repeat(32)),
        relay_server: "smtp.mailgun.org".into(),
        relay_port: 587,
        relay_username: Some("postmaster@example.com".into()),
        relay_password: None,
        rate_limit: None,
        max_message_size: 25_000_000,
        max_recipients: 1000,
    }
}

fn json(path: &PathBuf) -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_str(&fs::read_to_string(path).expect("the file is there")).expect("it is an object")
}

fn mode(path: &PathBuf) -> u32 {
    fs::metadata(path).expect("the file is there").permissions().mode() & 0o7777
}

#[test]
fn the_keys_are_those_that_apps_read() {
    let names: Vec<_> = variables(&mailer()).into_iter().map(|(name, _)| name).collect();
    let expected = [
        "HOST",
        "PORT",
        "LOGIN",
        "PASSWORD",
        "URL",
        "TLS",
        "TLS_FINGERPRINT",
        "RELAY_SERVER",
        "RELAY_PORT",
        "RELAY_USERNAME",
        "MAX_MESSAGE_SIZE",
        "MAX_RECIPIENTS",
    ];
    assert_eq!(names, expected.map(|suffix| format!("DOTCLOUD_MAILER_SMTP_{suffix}")));
}

#[test]
fn the_service_name_becomes_part_of_a_variable_name() {
    assert_eq!(prefix("my-mailer.2"), "DOTCLOUD_MY_MAILER_2_SMTP_");
}

#[test]
fn the_relay_password_is_published_only_when_it_is_given() {
    let published = Published { relay_password: Some("up".into()), ..mailer() };
    let with = variables(&published).into_iter().find(|(name, _)| name.ends_with("RELAY_PASSWORD"));
    assert_eq!(with, Some(("DOTCLOUD_MAILER_SMTP_RELAY_PASSWORD".into(), "up".into())));
}

#[test]
fn the_url_escapes_everything_that_a_parser_could_stumble_over() {
    let published = Published { password: "a|b&[c]/@:% ü".into(), host: "fd00::1".into(), ..mailer() };
    assert_eq!(url(&published), "smtp://dotcloud:a%7Cb%26%5Bc%5D%2F%40%3A%25%20%C3%BC@[fd00::1]:587");
    let implicit = Published { tls: "implicit", password: "x".into(), port: 465, ..mailer() };
    assert_eq!(url(&implicit), "smtps://dotcloud:x@10.0.0.7:465");
}

#[test]
fn json_and_yaml_give_every_value_back() {
    let vars =
        vec![("A".to_owned(), HOSTILE.to_owned()), ("B".to_owned(), "\u{1}\u{85}\u{2028}😀 no".to_owned())];
    for format in [Format::Json, Format::Yaml] {
        let text = render(format, &vars);
        let back = format::Entries::parse(format, &text).expect("it parses").0;
        let back: Vec<_> =
            back.into_iter().map(|(k, v)| (k, v.as_str().expect("a string").to_owned())).collect();
        assert_eq!(back, vars, "{text}");
    }
}

#[test]
fn sh_reads_back_any_password_from_shell_and_dotenv() {
    for password in [HOSTILE, "", "'", "''\"", "$(exit 1)", "a b", "-n", "\\", "*", "two\nlines"] {
        for format in [Format::Shell, Format::Dotenv] {
            let script = render(format, &[("P".into(), password.into())]) + "printf '%s|' \"$P\"";
            let output = Command::new("sh").arg("-c").arg(script).output().expect("sh runs");
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{password}|"), "{format:?}");
        }
    }
}

#[test]
fn plain_dotenv_values_stand_bare_for_readers_that_know_no_quotes() {
    let text = render(Format::Dotenv, &[("U".into(), "smtp://dotcloud:a%7Cb@10.0.0.7:587".into())]);
    assert_eq!(text, "U=smtp://dotcloud:a%7Cb@10.0.0.7:587\n");
}

#[test]
fn other_services_keys_stay_and_stale_ones_of_ours_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("environment.json");
    let before = r#"{"DOTCLOUD_DB_MYSQL_PORT": "3306", "DOTCLOUD_MAILER_SMTP_RATE_LIMIT": "1/day",
        "DOTCLOUD_MAILER_SMTP_SMTP_HOST": "other", "N": 7, "DOTCLOUD_MAILER_SMTP_PORT": "25", "A": {"z": [1]}}"#;
    fs::write(&file, before).expect("written");
    publish(std::slice::from_ref(&file), &mailer()).expect("published");
    let after = json(&file);
    assert_eq!(after["DOTCLOUD_DB_MYSQL_PORT"], "3306");
    assert_eq!(after["DOTCLOUD_MAILER_SMTP_SMTP_HOST"], "other", "a service called mailer_smtp");
    assert_eq!(after["N"], 7);
    assert_eq!(after["A"]["z"][0], 1);
    assert_eq!(after["DOTCLOUD_MAILER_SMTP_PORT"], "587");
    assert_eq!(after["DOTCLOUD_MAILER_SMTP_PASSWORD"], HOSTILE);
    assert!(!after.contains_key("DOTCLOUD_MAILER_SMTP_RATE_LIMIT"));
    let text = fs::read_to_string(&file).expect("read");
    assert!(
        text.starts_with("{\n  \"DOTCLOUD_DB_MYSQL_PORT\": \"3306\",\n  \"DOTCLOUD_MAILER_SMTP_SMTP_HOST\""),
        "{text}"
    );
}

#[test]
fn yaml_and_dotenv_twins_are_merged_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let (yaml, env) = (dir.path().join("environment.yaml"), dir.path().join(".env"));
    fs::write(&yaml, "OTHER: yes please\nPORT: 3306\nDOTCLOUD_MAILER_SMTP_PORT: '25'\n").expect("written");
    fs::write(&env, "# mine\nOTHER='x'\nexport DOTCLOUD_MAILER_SMTP_PORT=25\n").expect("written");
    publish(&[yaml.clone(), env.clone()], &mailer()).expect("published");
    let text = fs::read_to_string(&yaml).expect("read");
    assert!(
        text.starts_with(
            "\"OTHER\": \"yes please\"\n\"PORT\": 3306\n\"DOTCLOUD_MAILER_SMTP_PORT\": \"587\"\n"
        ),
        "{text}"
    );
    let text = fs::read_to_string(&env).expect("read");
    assert!(
        text.starts_with("# mine\nOTHER='x'\nDOTCLOUD_MAILER_SMTP_PORT=587\nDOTCLOUD_MAILER_SMTP_HOST="),
        "{text}"
    );
    publish(&[yaml.clone(), env.clone()], &mailer()).expect("published again");
    assert_eq!(fs::read_to_string(&env).expect("read"), text, "and a second time changes nothing");
}

#[test]
fn nothing_is_written_when_nothing_changed_but_the_mode_is_kept_tight() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("environment.json");
    let files = std::slice::from_ref(&file);
    publish(files, &mailer()).expect("published");
    assert_eq!(mode(&file), 0o640);
    let inode = || fs::metadata(&file).expect("there").ino();
    let first = inode();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("chmod");
    publish(files, &mailer()).expect("published");
    assert_eq!((inode(), mode(&file)), (first, 0o640));
    publish(files, &Published { port: 25, ..mailer() }).expect("published");
    assert_ne!(inode(), first, "a change replaces the file whole");
    assert_eq!(mode(&file), 0o640);
}

#[test]
fn a_file_that_is_no_object_is_never_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in [
        ("a.json", "not json s3cret"),
        ("b.json", "[1]"),
        ("c.json", "\"s3cret\""),
        ("d.yaml", "- s3cret"),
        ("e.yml", "a: [s3cret"),
        ("f.json", "{\"half\": "),
    ] {
        let file = dir.path().join(name);
        fs::write(&file, text).expect("written");
        let error = publish(std::slice::from_ref(&file), &mailer()).expect_err("refused").to_string();
        assert!(error.contains(name) && !error.contains("s3cret"), "{error}");
        assert_eq!(fs::read_to_string(&file).expect("read"), text);
    }
}

#[test]
fn links_are_not_followed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (victim, file) = (dir.path().join("victim"), dir.path().join("environment.json"));
    fs::write(&victim, "{}").expect("written");
    std::os::unix::fs::symlink(&victim, &file).expect("linked");
    let error = publish(std::slice::from_ref(&file), &mailer()).expect_err("refused");
    assert!(matches!(error, EnvironmentError::Link { .. }), "{error}");
    fs::remove_file(&file).expect("removed");

    // Neither at the name of the temporary file.
    std::os::unix::fs::symlink(&victim, dir.path().join(".environment.json.new")).expect("linked");
    publish(std::slice::from_ref(&file), &mailer()).expect("published");
    assert_eq!(fs::read_to_string(&victim).expect("read"), "{}");
}

#[test]
fn what_a_crash_left_behind_is_no_obstacle() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("environment.json");
    fs::write(dir.path().join(".environment.json.new"), "{\"half").expect("written");
    publish(std::slice::from_ref(&file), &mailer()).expect("published");
    assert_eq!(json(&file)["DOTCLOUD_MAILER_SMTP_PORT"], "587");
    assert!(!dir.path().join(".environment.json.new").exists());
}

#[test]
fn one_bad_file_does_not_keep_the_others_from_being_published() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = dir.path().join("environment.json");
    let error = publish(&[dir.path().join("missing/environment.json"), good.clone()], &mailer());
    assert!(error.expect_err("refused").to_string().contains("missing/environment.json"));
    assert!(good.exists());
}

#[test]
fn relays_that_share_a_file_lose_nothing_of_each_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("environment.json");
    thread::scope(|scope| {
        for n in 0..8 {
            let file = &file;
            scope.spawn(move || {
                for port in 1..=10 {
                    let published = Published { service: format!("m{n}"), port, ..mailer() };
                    publish(std::slice::from_ref(file), &published).expect("published");
                    // A reader never sees a part.
                    json(file);
                }
            });
        }
    });
    let after = json(&file);
    for n in 0..8 {
        assert_eq!(after[&format!("DOTCLOUD_M{n}_SMTP_PORT")], "10");
    }
}

#[test]
fn a_sibling_finds_the_fingerprint_by_host_and_port() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = ["environment.json", "environment.yaml"].map(|name| dir.path().join(name));
    for file in &files {
        let files = std::slice::from_ref(file);
        publish(files, &Published { host: "Mailer".into(), ..mailer() }).expect("published");
        publish(files, &Published { service: "b".into(), host: "b".into(), fingerprint: None, ..mailer() })
            .expect("published");
        assert_eq!(published_fingerprint(files, "mailer", 587), Some([0xab; 32]));
        assert_eq!(published_fingerprint(files, "mailer", 25), None);
        assert_eq!(published_fingerprint(files, "b", 587), None);
    }
    assert_eq!(published_fingerprint(&[dir.path().join("none.json")], "mailer", 587), None);
}
