//! Any octets as lines and as content: the cut makes no difference, nothing but CRLF.CRLF ends content, and
//! what is written can be read back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outpost::smtp::framing::{ChunkReader, ContentFault, ContentReader, ContentWriter, Line, LineReader};

const MAX: u64 = 300;
const LINE_MAX: usize = 40;

/// Content, fault, eight-bit, and where the end was.
type Read = (Vec<u8>, Option<ContentFault>, bool, Option<usize>);

fn content(octets: &[u8], size: usize, max: u64) -> Read {
    let (mut reader, mut content, mut taken) = (ContentReader::new(max), Vec::new(), 0);
    for piece in octets.chunks(size) {
        taken += reader.read(piece, |octets| content.extend_from_slice(octets));
        if reader.is_done() {
            break;
        }
    }
    let end = reader.is_done().then_some(taken);
    if reader.fault().is_some() {
        // What a refused message holds is nobody's business.
        content.clear();
    } else {
        assert_eq!(content.len() as u64, reader.size());
    }
    (content, reader.fault(), reader.is_eight_bit(), end)
}

/// Lines as a connection reads them, its buffer filled piece by piece.
fn lines(octets: &[u8], size: usize) -> (Vec<Result<Vec<u8>, bool>>, bool) {
    let (mut reader, mut buffer, mut lines) = (LineReader::default(), Vec::new(), Vec::new());
    for piece in octets.chunks(size) {
        buffer.extend_from_slice(piece);
        loop {
            let Ok((line, used)) = reader.next(&buffer, LINE_MAX) else { return (lines, true) };
            match line {
                Some(Line::Whole(line)) => {
                    assert!(line.len() <= LINE_MAX && !line.contains(&b'\n') && !line.contains(&b'\r'));
                    lines.push(Ok(line.to_vec()));
                }
                Some(Line::TooLong) => lines.push(Err(true)),
                Some(Line::BareNewline) => lines.push(Err(false)),
                None => {
                    buffer.drain(..used);
                    break;
                }
            }
            buffer.drain(..used);
        }
        assert!(buffer.len() <= LINE_MAX + 1, "the buffer grows");
    }
    (lines, false)
}

/// The same octets as chunks of lines: what is wrong with them.
fn chunks(octets: &[u8], size: usize) -> Option<ContentFault> {
    let mut reader = ChunkReader::new(MAX, false);
    for piece in octets.chunks(size) {
        reader.read(piece);
    }
    reader.end();
    reader.fault()
}

/// What is wrong with the same octets where lines have a bound: as content, up to its end, and as chunks.
fn bounded(octets: &[u8], size: usize) -> [Option<ContentFault>; 2] {
    let mut reader = ContentReader::new(MAX).with_lines_of(LINE_MAX);
    let mut chunks = ChunkReader::new(MAX, false).with_lines_of(LINE_MAX);
    for piece in octets.chunks(size) {
        reader.read(piece, |_| {});
        chunks.read(piece);
    }
    chunks.end();
    [reader.fault().filter(|_| reader.is_done()), chunks.fault()]
}

/// The fault that the bound makes of what had none.
fn with_bound(content: &[u8], fault: Option<ContentFault>) -> Option<ContentFault> {
    let mut lines = content.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    fault.or_else(|| lines.any(|line| line.len() > LINE_MAX).then_some(ContentFault::LineTooLong))
}

fn has_bare_newline(octets: &[u8]) -> bool {
    octets.iter().enumerate().any(|(i, b)| match b {
        b'\r' => octets.get(i + 1) != Some(&b'\n'),
        b'\n' => i == 0 || octets[i - 1] != b'\r',
        _ => false,
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((size, octets)) = data.split_first() else { return };
    let size = usize::from(*size).max(1);

    let whole = content(octets, usize::MAX, MAX);
    assert_eq!(whole, content(octets, size, MAX), "the cut made a difference");
    assert_eq!(whole, content(octets, 1, MAX), "the cut made a difference");
    let end = if octets.starts_with(b".\r\n") {
        Some(3)
    } else {
        octets.windows(5).position(|window| window == b"\r\n.\r\n").map(|at| at + 5)
    };
    assert_eq!(whole.3, end, "only CRLF.CRLF ends content, and the first does");
    if let (Some(end), None) = (end, whole.1) {
        assert!(!has_bare_newline(&octets[..end]), "a bare CR or LF went unnoticed");
    }

    assert_eq!(lines(octets, usize::MAX), lines(octets, size), "the cut made a difference");
    assert_eq!(lines(octets, usize::MAX), lines(octets, 1), "the cut made a difference");

    let fault = chunks(octets, usize::MAX);
    assert_eq!(fault, chunks(octets, size), "the cut made a difference");
    assert_eq!(fault, chunks(octets, 1), "the cut made a difference");
    assert_eq!(fault == Some(ContentFault::BareNewline), has_bare_newline(octets));

    let lines = bounded(octets, usize::MAX);
    assert_eq!(lines, bounded(octets, size), "the cut made a difference");
    assert_eq!(lines, bounded(octets, 1), "the cut made a difference");
    if end.is_some() {
        assert_eq!(
            lines[0],
            with_bound(&whole.0, whole.1),
            "a line of content is not as long as it was taken for"
        );
    }
    assert_eq!(lines[1], with_bound(octets, fault), "a line of chunks is not as long as it was taken for");

    // Content that was accepted goes out and comes in again as it was, but for the CRLF of a last line.
    if let (sent, None, eight_bit, Some(_)) = &whole {
        let (mut writer, mut wire) = (ContentWriter::default(), Vec::new());
        for piece in sent.chunks(size) {
            writer.write(piece, |octets| wire.extend_from_slice(octets));
        }
        wire.extend_from_slice(writer.end());
        assert_eq!(content(&wire, usize::MAX, u64::MAX), (sent.clone(), None, *eight_bit, Some(wire.len())));
    }
});
