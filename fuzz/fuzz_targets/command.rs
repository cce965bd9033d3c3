//! Any octets as a command line: judged without a panic; what is accepted can be written as one line that
//! means the same, and what is refused gets a reply that is one.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outpost::smtp::{
    command::Command,
    parameter::ORCPT_MAX,
    reply::{ReplyReader, Severity},
};

/// An ORCPT that grows beyond its bound when it is encoded is kept for our own reports and not passed on.
fn as_written(mut command: Command) -> Command {
    if let Command::Rcpt(_, parameters) = &mut command {
        parameters.original.take_if(|original| original.to_string().len() > ORCPT_MAX);
    }
    command
}

fuzz_target!(|line: &[u8]| {
    let mut written = Vec::new();
    match Command::parse(line) {
        // VRFY alone is not written with its argument: we never say it.
        Ok(command) => {
            command.write_to(&mut written);
            let body = written.strip_suffix(b"\r\n").expect("a command ends with CRLF");
            assert!(!body.iter().any(u8::is_ascii_control), "a line within a line");
            assert_eq!(Command::parse(body), Ok(as_written(command)));
        }
        Err(reply) => {
            assert_eq!(reply.severity(), Severity::Permanent);
            reply.write_to(&mut written);
            let mut octets = written.as_slice();
            assert_eq!(ReplyReader::default().read(&mut octets), Ok(Some(reply)));
            assert!(octets.is_empty(), "a client made us say two replies");
        }
    }
});
