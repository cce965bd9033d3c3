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
        wrong(&[("SMTP_PASSWORD_GRACE", "x")])
            .starts_with("$SMTP_PASSWORD_GRACE: smtp_password_grace wants a duration")
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
    // For commands outside the service.
    fs::create_dir(at("credentials")).expect("a directory");
    fs::write(at("credentials/relay_password"), "beside").expect("written");
    let beside = |env: &[(&str, &str)]| {
        let file = at("dotcloud.yml");
        fs::write(&file, &text).expect("written");
        let env =
            |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let loaded = load(&Source { file: Some(file), ..Source::default() }, &env).expect("right");
        let login = loaded.settings.upstreams[0].login.clone().expect("a login");
        login.password.expose_secret().to_owned()
    };
    assert_eq!((beside(&[]).as_str(), beside(&env).as_str()), ("beside", "credential"));
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

#[test]
fn a_preset_fills_in_what_is_not_set_and_a_key_beside_it_wins() {
    let with = |lines: &str| format!("mailer:\n  type: smtp\n  config:\n{lines}");
    let read = |lines: &str| read(&with(lines)).upstreams.remove(0);
    let gmail = read("    smtp_relay_provider: gmail\n");
    assert_eq!(
        (gmail.server.as_str(), gmail.port, gmail.tls),
        ("smtp.gmail.com", 587, UpstreamTls::StartTls)
    );
    assert_eq!((gmail.recipients, gmail.provider.as_deref()), (Some(100), Some("gmail")));
    let own = read(
        "    smtp_relay_provider: office365\n    smtp_relay_connections: 1\n    smtp_relay_server: a.example\n",
    );
    assert_eq!((own.server.as_str(), own.connections), ("a.example", 1));
    let ses = read("    smtp_relay_provider: ses-eu-west-1\n    smtp_relay_port: 2465\n");
    assert_eq!((ses.server.as_str(), ses.tls), ("email-smtp.eu-west-1.amazonaws.com", UpstreamTls::Implicit));
    assert_eq!(read("    smtp_relay_server: smtp.office365.com\n").connections, 3);
    assert_eq!(read("    smtp_relay_provider: fastmail\n").tls, UpstreamTls::Implicit);
    let wrong = |lines: &str| read_with(&with(lines), None, &[]).expect_err("it is wrong").to_string();
    assert!(wrong("    smtp_relay_provider: ses\n").contains("ses-eu-west-1"));
    assert!(wrong("    smtp_relay_provider: sendgird\n").contains("did you mean sendgrid"));
}

#[test]
fn known_mistakes_with_a_login_are_named_and_never_the_login() {
    for (server, user, password, words) in [
        ("smtp.gmail.com", "me@gmail.com", "my-own-password", "app password"),
        ("smtp.gmail.com", "me", "abcd efgh ijkl mnop", "full address"),
        ("smtp.sendgrid.net", "me@x.example", "SG.abc", "apikey"),
        ("smtp.sendgrid.net", "apikey", "hunter-two", "SG."),
        ("smtp.resend.com", "me@x.example", "re_1", "resend"),
        (
            "email-smtp.us-east-1.amazonaws.com",
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "IAM user's secret key",
        ),
        ("smtp-relay.brevo.com", "me@x.example", "xkeysib-1", "SMTP key"),
        ("smtp.critsend.com", "me", "p", "has ended its service"),
    ] {
        let text = format!(
            "mailer:\n  type: smtp\n  config:\n    smtp_relay_server: {server}\n    smtp_relay_username: '{user}'\n    smtp_relay_password: '{password}'\n"
        );
        let warnings = read_with(&text, None, &[]).expect("it is right").warnings;
        let said: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|said| said.contains(words)), "{server}: {said:?}");
        assert!(!said.iter().any(|said| said.contains(password) && password.len() > 1), "{said:?}");
    }
}

#[test]
fn starttls_on_a_port_that_a_preset_has_for_implicit_tls_is_named() {
    let said = |port: u16, tls: &str| {
        let text = format!(
            "mailer:\n  type: smtp\n  config:\n    smtp_relay_provider: ses-eu-west-1\n    smtp_relay_port: {port}\n    smtp_relay_tls: {tls}\n"
        );
        let warnings = read_with(&text, None, &[]).expect("it is right").warnings;
        warnings.iter().map(ToString::to_string).collect::<String>()
    };
    let words = "port 2465 of ";
    let wrong = said(2465, "starttls");
    assert!(wrong.contains(words) && wrong.contains("implicit") && wrong.contains("587"), "{wrong}");
    assert!(!said(2465, "implicit").contains(words) && !said(2587, "starttls").contains("first byte"));
}
