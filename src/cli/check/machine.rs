//! What only shows when the settings meet the machine: ports, disks, files, certificates, the clock.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::Path,
    time::Duration,
};

use rustix::fs::{Access, access};

use super::{Finding, Level};
use crate::{
    clock::{Clock, Timestamp},
    config::{Loaded, Problem, Settings},
    delivery::{Agent, dkim::Signer},
    listener::certificate::{self, Flaw},
    queue::disk,
};

/// A file changed by so much after "now" tells of a clock that is wrong, not of one that is a little late.
const CLOCK_OFF: Duration = Duration::from_secs(3600);
/// A certificate that ends within this time is to be renewed now.
const SOON: Duration = Duration::from_secs(14 * 86_400);

/// Looks at everything. `runs`: the relay itself has the ports and the queue now.
pub(super) fn look(loaded: &Loaded, runs: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    if !runs {
        ports(loaded, &mut found);
        directories(loaded, &mut found);
    }
    if let Some(warning) = disk::thrown_away(&loaded.settings) {
        let (message, help) = warning.split_once(". ").unwrap_or((&warning, ""));
        found.push(Finding::warning(loaded.places.problem("smtp_queue", message, help)));
    }
    certificates(loaded, &mut found);
    upstreams(loaded, &mut found);
    environment(loaded, &mut found);
    networks(loaded, &mut found);
    clock(loaded, &mut found);
    found.sort_by_key(|found| (found.level == Level::Warning, found.problem.line.unwrap_or(u32::MAX)));
    found
}

/// Whether each address could be listened on, by doing it for a moment.
fn ports(loaded: &Loaded, found: &mut Vec<Finding>) {
    let Settings { listen, admin, .. } = &loaded.settings;
    let smtp = listen
        .iter()
        .filter(|listen| !listen.is_unix() && !listen.is_passed())
        .map(|listen| ("smtp_listen", listen.address.clone()));
    for (key, address) in smtp.chain([("smtp_admin_listen", admin.listen.to_string())]) {
        let Err(error) = TcpListener::bind(&address) else { continue };
        let port = address.rsplit_once(':').map_or("", |(_, port)| port);
        let other = if key == "smtp_listen" { "0.0.0.0:1587" } else { "127.0.0.1:8026" };
        let (message, help) = match error.kind() {
            io::ErrorKind::AddrInUse => (
                format!("another program listens on port {port} already"),
                format!("`ss -ltnp 'sport = :{port}'` names it; stop it, or write `{key}: {other}`"),
            ),
            io::ErrorKind::PermissionDenied => (
                format!("this user may not listen on port {port}, for it is below 1024"),
                format!("write `{key}: {other}`; or run it as root, or with CAP_NET_BIND_SERVICE"),
            ),
            io::ErrorKind::AddrNotAvailable => (
                format!("this machine has no address {address}"),
                format!("write one of its own (`ip address`), or `{key}: 0.0.0.0:{port}` for all of them"),
            ),
            _ => (format!("can't listen on {address}: {error}"), format!("for example `{key}: {other}`")),
        };
        found.push(Finding::error(loaded.places.problem(key, message, help)));
    }
}

/// Whether the relay could keep anything.
fn directories(loaded: &Loaded, found: &mut Vec<Finding>) {
    let Settings { data, queue, .. } = &loaded.settings;
    if let Some(there) = closed_to_us(data) {
        let message = format!(
            "this user can't write to {}, where the queue and the passwords are kept",
            there.display()
        );
        let help =
            "run it as the relay's user, or `chown` the directory to that user; or name another by --data";
        found.push(Finding::error(Problem::of_file(&data.display().to_string(), message, Some(help))));
    }
    if !queue.directory.starts_with(data)
        && let Some(there) = closed_to_us(&queue.directory)
    {
        let message = format!("this user can't write to {}", there.display());
        let help = "run it as the relay's user, or `chown` the directory to that user";
        found.push(Finding::error(loaded.places.problem("smtp_queue", message, help)));
    }
}

/// The directory, or the one it would be made in, if we may not write there.
fn closed_to_us(directory: &Path) -> Option<&Path> {
    let there = directory.ancestors().find(|path| path.as_os_str().is_empty() || path.exists())?;
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    access(there, Access::WRITE_OK | Access::EXEC_OK).is_err().then_some(there)
}

/// The listener's certificate, and the keys that sign mail.
fn certificates(loaded: &Loaded, found: &mut Vec<Finding>) {
    let settings = &loaded.settings;
    if let Some(files) = &settings.tls {
        let host = settings.environment.public_host.as_deref().unwrap_or(&settings.hostname);
        let now = Clock::System.now();
        for flaw in certificate::flaws(files, host, now, SOON) {
            let renew = "renew it; the relay takes the new files up by itself";
            let (level, key, help) = match &flaw {
                Flaw::Unusable(_) => (
                    Level::Error,
                    "smtp_tls_cert",
                    "PEM files: the certificate with its chain, the leaf first, and its key",
                ),
                Flaw::KeyOfAnother => {
                    (Level::Error, "smtp_tls_key", "name the key that the certificate was made with")
                }
                Flaw::Expired | Flaw::EndsSoon => (Level::Warning, "smtp_tls_cert", renew),
                Flaw::NotYetValid => (Level::Warning, "smtp_tls_cert", "is the clock of this machine right?"),
                Flaw::OtherName(_) => (
                    Level::Warning,
                    "smtp_tls_cert",
                    "set smtp_public_host to a name in the certificate, or have one made for this name",
                ),
            };
            let problem = loaded.places.problem(key, flaw.to_string(), help);
            found.push(Finding { level, problem });
        }
    }
    for dkim in &settings.dkim {
        if let Err(fault) = Signer::load(dkim) {
            let help = "`outpost dkim` makes the keys that are missing";
            found.push(Finding::error(loaded.places.problem("smtp_dkim", fault.to_string(), help)));
        }
    }
}

/// The files that connections to the upstreams need.
fn upstreams(loaded: &Loaded, found: &mut Vec<Finding>) {
    for upstream in &loaded.settings.upstreams {
        if let Err(fault) = Agent::new(upstream.clone(), &loaded.settings.hostname, Clock::System) {
            let key = match (loaded.settings.upstreams.len(), &upstream.ca, &upstream.identity) {
                (1, Some(_), _) => "smtp_relay_tls_ca",
                (1, None, Some(_)) => "smtp_relay_tls_cert",
                (1, None, None) => "smtp_relay_server",
                _ => "smtp_relays",
            };
            let help = fault.help.unwrap_or("name a file that holds certificates in PEM form");
            found.push(Finding::error(loaded.places.problem(key, fault.words, help)));
        }
    }
}

/// Whether apps will find what is published.
fn environment(loaded: &Loaded, found: &mut Vec<Finding>) {
    let settings = &loaded.settings;
    for file in &settings.environment.files {
        let directory =
            file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if directory.starts_with(&settings.data) {
            continue;
        }
        let message = if !directory.is_dir() {
            format!("there is no directory {}, so apps would not find the relay", directory.display())
        } else if access(directory, Access::WRITE_OK | Access::EXEC_OK).is_err() {
            format!("this user can't write to {}, so apps would not find the relay", directory.display())
        } else {
            continue;
        };
        let help =
            "make the directory, and let the relay's user write there: the file is replaced as a whole";
        found.push(Finding::warning(loaded.places.problem("smtp_environment_file", message, help)));
    }
}

/// Ports published by a container engine are reached from its gateway, whoever connects to them.
fn networks(loaded: &Loaded, found: &mut Vec<Finding>) {
    let networks = &loaded.settings.access.networks;
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let Some(gateway) = default_gateway(&routes) else { return };
    // One that is open to all is told of already.
    if networks.iter().any(|network| network.prefix_len() == 0) {
        return;
    }
    if let Some(network) = networks.iter().find(|network| network.contains(&IpAddr::V4(gateway))) {
        let message = format!(
            "{network} holds {gateway}, this machine's gateway: mail that comes from elsewhere through a published \
             port of a container, or through a router, may look as if it came from there, and needs no login"
        );
        let help = "name the apps' own addresses; or have apps log in with what `outpost env` shows";
        found.push(Finding::warning(loaded.places.problem("smtp_networks", message, help)));
    }
}

/// proc_net_route(5): the gateway of the route to everywhere, in hexadecimal, the last octet first.
fn default_gateway(routes: &str) -> Option<Ipv4Addr> {
    routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok().filter(|gateway| *gateway != 0)?;
        (destination == "00000000").then(|| Ipv4Addr::from(gateway.swap_bytes()))
    })
}

/// A clock that is behind makes certificates invalid and mail look old.
fn clock(loaded: &Loaded, found: &mut Vec<Finding>) {
    let Some(file) = &loaded.file else { return };
    let Ok(changed) = fs::metadata(file).and_then(|found| found.modified()) else { return };
    let Ok(changed) = changed.duration_since(std::time::UNIX_EPOCH) else { return };
    let changed = Timestamp(u64::try_from(changed.as_millis()).unwrap_or(u64::MAX));
    if changed.since(Clock::System.now()) > CLOCK_OFF {
        let message = format!(
            "the file was changed at {changed}, which is still to come: is the clock of this machine behind?"
        );
        let help = "set the clock (`timedatectl set-ntp true`): certificates seem not to be valid yet, and mail seems old";
        found.push(Finding::warning(Problem::of_file(&file.display().to_string(), message, Some(help))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Source};

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
        eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";

    #[test]
    fn the_gateway_is_read_from_the_routes() {
        assert_eq!(default_gateway(ROUTES), Some(Ipv4Addr::new(172, 17, 0, 1)));
        assert_eq!(default_gateway(""), None);
        let (no_way_out, _) = ROUTES.rsplit_once("eth0").unwrap();
        assert_eq!(default_gateway(no_way_out), None);
    }

    #[test]
    fn a_directory_for_environment_json_and_an_address_that_are_not_there_are_told_at_their_keys() {
        let text = "mailer:\n  type: smtp\n  config:\n    smtp_relay_server: a.example\n    \
            smtp_environment_file: /nowhere/environment.json\n    smtp_listen: 192.0.2.1:2525\n    \
            smtp_relay_tls_ca: /nowhere/ca.pem\n";
        let data = tempfile::tempdir().unwrap();
        let source = Source { data: Some(data.path().to_owned()), ..Source::default() };
        let loaded = config::parse(text, "dotcloud.yml", &source, &|_| None).unwrap();
        let told = |runs| {
            let found = look(&loaded, runs);
            let shown = found.iter().map(|found| (found.level, found.problem.line)).collect::<Vec<_>>();
            // What this machine's own disk and ports say is not of this test.
            shown.into_iter().filter(|(_, line)| matches!(line, Some(5..=7))).collect::<Vec<_>>()
        };
        let (error, warning) = (Level::Error, Level::Warning);
        assert_eq!(told(false), [(error, Some(6)), (error, Some(7)), (warning, Some(5))]);
        assert_eq!(told(true), [(error, Some(7)), (warning, Some(5))], "a running relay has its ports");
    }
}
