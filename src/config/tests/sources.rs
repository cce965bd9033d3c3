//! Files, variables, credentials.

use std::fs;

use secrecy::ExposeSecret as _;

use super::*;

#[test]
fn the_environment_wins_over_the_file_and_is_named_when_it_is_wrong() {
    let set = read_with(
        MAILGUN,
        None,
        &[("SMTP_RELAY_PORT", "2525"), ("SMTP_NETWORKS", "10.0.0.0/8, ::1"), ("SMTP_USERNAME", "")],
    );
    let settings = set.expect("right").settings;
    assert_eq!((settings.upstreams[0].port, settings.access.networks.len()), (2525, 2));
    assert_eq!(settings.access.users[0].name, "dotcloud", "an empty variable is none");
    let wrong = |env: &[(&str, &str)]| read_with(MAILGUN, None, env).expect_err("wrong").to_string();
    assert_eq!(
        wrong(&[("SMTP_RELAY_PORT", "s3cret")]),
        "$SMTP_RELAY_PORT: smtp_relay_port wants a port from 1 to 65535\n  help: for example `587`"
    );
    assert!(
        wrong(&[("SMTP_RELAY_OAUTH", "x")])
            .starts_with("$SMTP_RELAY_OAUTH: smtp_relay_oauth is not available")
    );
    let both = wrong(&[("SMTP_RELAY_PASSWORD", "s3cret"), ("SMTP_RELAY_PASSWORD_FILE", "/x")]);
    assert!(
        both.contains(
            "$SMTP_RELAY_PASSWORD_FILE: smtp_relay_password_file is set beside smtp_relay_password"
        ),
        "{both}"
    );
    let www =
        read_with(LOCAL, Some("www"), &[("SMTP_SERVER", "mailer"), ("SMTP_PASSWORD", "x")]).expect("right");
    assert_eq!(www.settings.upstreams[0].server, "mailer");
    assert_eq!(www.settings.upstreams[0].login.clone().expect("a login").password.expose_secret(), "x");
}

#[test]
fn secrets_come_from_files_and_credentials() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    fs::write(at("pw"), "from file \n").expect("written");
    fs::write(at("empty"), "\n").expect("written");
    fs::write(at("lines"), "a\nb\n").expect("written");
    fs::write(at("smtp_relay_password"), "credential").expect("written");
    let credentials = dir.path().to_str().expect("text");
    let text = MAILGUN.replace("    smtp_relay_password: YourMailgunPassword\n", "");
    let password = |text: &str, env: &[(&str, &str)]| {
        let login = read_with(text, None, env)?.settings.upstreams[0].login.clone().expect("a login");
        Ok::<_, Problems>(login.password.expose_secret().to_owned())
    };
    let with = |name: &str| format!("{text}    smtp_relay_password_file: {}\n", at(name).display());
    assert_eq!(password(&with("pw"), &[]).expect("right"), "from file ");
    let env = [("CREDENTIALS_DIRECTORY", credentials)];
    assert_eq!(password(&text, &env).expect("right"), "credential");
    assert_eq!(password(&with("pw"), &env).expect("right"), "from file ", "only when nothing else sets it");
    for (name, words) in [
        ("empty", "is empty"),
        ("lines", "more than one line"),
        ("none", "can't be read"),
        (".", "regular file"),
    ] {
        let error = password(&with(name), &[]).expect_err("wrong").to_string();
        assert!(error.contains(words), "{error}");
    }
    let hint = &read_with(&with("pw"), None, &[]).expect("right").warnings;
    assert!(hint[0].message.contains("can be read by every user"));
    let both = format!("{}    smtp_relay_password: s3cret\n", with("pw"));
    assert!(password(&both, &[]).expect_err("wrong").to_string().contains("both mean the same"));
}

#[test]
fn files_that_cannot_be_read_are_explained() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str| Source { file: Some(dir.path().join(name)), ..Source::default() };
    fs::write(dir.path().join("latin"), b"a: 1\nb: \xff\n").expect("written");
    fs::write(dir.path().join("large"), vec![b'\xff'; 2 << 20]).expect("written");
    for (name, words) in [
        (".", "this is a directory"),
        ("none", "there is no such file"),
        ("latin", "line 2 isn't UTF-8"),
        ("large", "larger than 1 MiB"),
    ] {
        let got = load(&file(name), &|_| None).expect_err("wrong").to_string();
        assert!(got.contains(words), "{got}");
    }
}

#[test]
fn a_readable_file_with_a_password_is_worth_a_hint() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("dotcloud.yml");
    let source = Source { file: None, data: Some("/data".into()), ..Source::default() };
    let env = |name: &str| (name == "OUTPOST_CONFIG").then(|| path.display().to_string());
    fs::write(&path, MAILGUN).expect("written");
    for (mode, hints) in [(0o644, 1), (0o600, 0)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        let loaded = load(&source, &env).expect("right");
        assert_eq!((loaded.warnings.len(), loaded.file.as_ref()), (hints, Some(&path)));
    }
}

#[test]
fn without_a_file_the_environment_is_enough() {
    let env = |name: &str| (name == "SMTP_RELAY_SERVER").then(|| "relay.example".to_owned());
    let loaded = load(&Source { data: Some("/d".into()), ..Source::default() }, &env).expect("right");
    assert_eq!((loaded.settings.service.as_str(), loaded.file), ("mailer", None));
    let error = load(&Source::default(), &|_| None).expect_err("wrong").to_string();
    assert!(
        error.starts_with("dotcloud.yml: no file here, nor /etc/outpost/dotcloud.yml\n  help:"),
        "{error}"
    );
}
