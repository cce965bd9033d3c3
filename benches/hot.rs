//! The stages of a message's way that run for every message, one by one.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use outpost::{
    mail::content::Facts,
    smtp::{
        command::Command,
        framing::{ContentReader, ContentWriter},
        reply::ReplyReader,
    },
};

fn message(size: usize) -> Vec<u8> {
    let mut message = b"From: <app@sender.example>\r\nTo: <user@rcpt.example>\r\nSubject: hello\r\n\
        Message-ID: <1@sender.example>\r\nDate: Mon, 18 Jun 2012 06:13:20 +0000\r\n\r\n"
        .to_vec();
    while message.len() < size {
        message
            .extend_from_slice(b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n");
    }
    message
}

fn stages(c: &mut Criterion) {
    for (name, size) in [("1 KiB", 1024), ("100 KiB", 100 * 1024)] {
        let message = message(size);
        let wire = [message.as_slice(), b".\r\n"].concat();
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(wire.len() as u64));
        group.bench_function("read content", |b| {
            let mut kept = Vec::with_capacity(wire.len());
            b.iter(|| {
                kept.clear();
                ContentReader::new(u64::MAX).read(&wire, |octets| kept.extend_from_slice(octets))
            });
        });
        group.bench_function("write content", |b| {
            b.iter(|| {
                let mut pieces = 0;
                ContentWriter::default().write(&message, |piece| pieces += piece.len());
                pieces
            });
        });
        group.bench_function("checksum", |b| b.iter(|| crc32c::crc32c(&message)));
        group.bench_function("look at the header", |b| b.iter(|| Facts::of(&message, true)));
        group.finish();
    }
    c.bench_function("parse MAIL", |b| {
        b.iter(|| Command::parse(b"MAIL FROM:<app@sender.example> SIZE=1024 BODY=8BITMIME"));
    });
    c.bench_function("parse a reply", |b| {
        b.iter(|| ReplyReader::default().read(&mut &b"250 2.0.0 queued as 1M83JGMBQ1W2J\r\n"[..]));
    });
}

criterion_group!(benches, stages);
criterion_main!(benches);
