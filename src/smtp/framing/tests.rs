//! What is a line, what is content, where either ends.

use proptest::prelude::*;

use super::*;

/// Feeds the pieces one after another; returns content, fault, and what follows the end.
fn read(pieces: &[&[u8]], max: u64) -> (Vec<u8>, Option<ContentFault>, Option<Vec<u8>>) {
    let (mut reader, mut content, mut rest) = (ContentReader::new(max), Vec::new(), Vec::new());
    for piece in pieces {
        let used =
            if reader.is_done() { 0 } else { reader.read(piece, |octets| content.extend_from_slice(octets)) };
        rest.extend_from_slice(&piece[used..]);
    }
    let fault = reader.fault();
    (content, fault, reader.is_done().then_some(rest))
}

/// Every way to cut `octets` in two gives the same.
#[track_caller]
fn check(octets: &[u8], content: &[u8], fault: Option<ContentFault>, rest: Option<&[u8]>) {
    for cut in 0..=octets.len() {
        let (got, got_fault, got_rest) = read(&[&octets[..cut], &octets[cut..]], 1000);
        assert_eq!((got_fault, got_rest.as_deref()), (fault, rest), "cut at {cut}: {octets:?}");
        if fault.is_none() {
            assert_eq!(got, content, "cut at {cut}");
        }
    }
}

#[test]
fn content_ends_at_a_line_of_one_dot_and_dots_are_unstuffed() {
    check(b".\r\n", b"", None, Some(b""));
    check(b"a\r\n.\r\nMAIL", b"a\r\n", None, Some(b"MAIL"));
    check(b"..a\r\n...\r\n.b\r\n.\r\n", b".a\r\n..\r\nb\r\n", None, Some(b""));
    check(b"\r\n\r\n.\r\n", b"\r\n\r\n", None, Some(b""));
}

#[test]
fn nothing_that_only_looks_like_the_end_is_one() {
    let bare = Some(ContentFault::BareNewline);
    for end in
        ["\n.\n", "\n.\r\n", "\r\n.\n", "\n.\r", "\r.\n", "\r.\r", "\r.\r\n", "\r\n.\r\r\n", "\r\r\n.\r\r\n"]
    {
        let octets = format!("a{end}MAIL FROM:<x@y>\r\n");
        check(octets.as_bytes(), b"", bare, None);
        let whole = format!("{octets}.\r\nQUIT\r\n");
        check(whole.as_bytes(), b"", bare, Some(b"QUIT\r\n"));
    }
    check(b"a\r\n\0.\r\nb\r\n.\r\n", b"", Some(ContentFault::HiddenDot), Some(b""));
    check(b"a\r\n.\0\r\nb\r\n.\r\n", b"a\r\n\0\r\nb\r\n", None, Some(b""));
}

/// What a server sees that drops NULs.
#[test]
fn what_is_sent_on_ends_in_one_place_only_whoever_reads_it() {
    let hidden = Some(ContentFault::HiddenDot);
    for (line, fault) in [
        ("\0.", hidden),
        ("\0\0.\0", hidden),
        ("\0..", hidden),
        (".\0", None),
        ("\0", None),
        ("\0a.", None),
        ("a\0.", None),
        (".", None),
        ("..", None),
        (". ", None),
    ] {
        let content = format!("a\r\n{line}\r\nMAIL FROM:<x@y.example>\r\n");
        for cut in 0..=content.len() {
            let pieces = [&content.as_bytes()[..cut], &content.as_bytes()[cut..]];
            let (mut chunks, mut writer, mut wire) =
                (ChunkReader::new(1000, false), ContentWriter::default(), Vec::new());
            for piece in pieces {
                chunks.read(piece);
                writer.write(piece, |octets| wire.extend_from_slice(octets));
            }
            wire.extend_from_slice(writer.end());
            assert_eq!(chunks.fault(), fault, "{line:?} cut at {cut}");
            assert_eq!(read(&[&wire], 1000).1, fault, "{line:?}");
            wire.retain(|b| *b != 0);
            let ends = read(&[&wire], 1000).2 == Some(Vec::new());
            assert!(ends || fault == hidden, "{line:?} cut at {cut}: ends too early");
        }
    }
}

#[test]
fn content_beyond_the_limit_is_read_to_its_end_and_not_given_out() {
    let (content, fault, rest) = read(&[b"0123456789\r\nabc\r\n.\r\nX"], 10);
    assert_eq!((fault, rest.as_deref()), (Some(ContentFault::TooLarge), Some(&b"X"[..])));
    assert!(content.len() <= 10);
    assert_eq!(read(&[b"01234567\r\n.\r\n"], 10).1, None);
}

#[test]
fn a_line_beyond_its_bound_is_found_however_it_is_cut() {
    let too_long = Some(ContentFault::LineTooLong);
    for (octets, expected) in [
        ("1234\r\n1234\r\n", None),
        ("\r\n\r\n12\r\n", None),
        ("12345\r\n", too_long),
        ("1\r\n12345\r\n1\r\n", too_long),
        ("1\r\n1234567890\r\n", too_long),
    ] {
        let wire = format!("{octets}.\r\n");
        for cut in 0..=octets.len() {
            let mut reader = ContentReader::new(1000).with_lines_of(4);
            let used = reader.read(&wire.as_bytes()[..cut], |_| {});
            reader.read(&wire.as_bytes()[used..], |_| {});
            assert_eq!((reader.is_done(), reader.fault()), (true, expected), "{octets:?} cut at {cut}");
            for binary in [false, true] {
                let mut reader = ChunkReader::new(1000, binary).with_lines_of(4);
                reader.read(&octets.as_bytes()[..cut]);
                reader.read(&octets.as_bytes()[cut..]);
                reader.end();
                assert_eq!(reader.fault(), expected.filter(|_| !binary), "{octets:?} cut at {cut}");
            }
        }
    }
    // A dot that is undone is not counted, and a chunk may end within its line.
    let mut reader = ContentReader::new(1000).with_lines_of(4);
    reader.read(b"..123\r\n.\r\n", |_| {});
    assert_eq!(reader.fault(), None);
    for (octets, expected) in [(&b"1234"[..], None), (b"12345", too_long)] {
        let mut reader = ChunkReader::new(1000, false).with_lines_of(4);
        reader.read(octets);
        reader.end();
        assert_eq!(reader.fault(), expected);
    }
}

#[test]
fn chunks_are_lines_unless_they_are_binary() {
    let bare = Some(ContentFault::BareNewline);
    for (octets, expected) in [
        (&b"a\r\n.\r\nb"[..], None),
        (b"", None),
        (b"\r\n\r\n", None),
        (b"a\nb\r\n", bare),
        (b"a\rb\r\n", bare),
        (b"a\r\n\n", bare),
        (b"a\r\r\n", bare),
        (b"a\r", bare),
        (b"0123456789a", Some(ContentFault::TooLarge)),
    ] {
        for cut in 0..=octets.len() {
            for binary in [false, true] {
                let mut reader = ChunkReader::new(10, binary);
                reader.read(&octets[..cut]);
                reader.read(b"");
                reader.read(&octets[cut..]);
                reader.end();
                let expected = expected.filter(|fault| !binary || *fault == ContentFault::TooLarge);
                assert_eq!(reader.fault(), expected, "{octets:?} cut at {cut}, binary: {binary}");
            }
        }
    }
}

fn lines(octets: &[u8], cuts: &[usize], max: usize) -> Result<Vec<Result<Vec<u8>, bool>>, Endless> {
    let (mut reader, mut buffer, mut out, mut rest) = (LineReader::default(), Vec::new(), Vec::new(), octets);
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
        buffer.extend_from_slice(piece);
        rest = after;
        loop {
            let (line, used) = reader.next(&buffer, max)?;
            let line = match line {
                Some(Line::Whole(line)) => Some(Ok(line.to_vec())),
                Some(Line::TooLong) => Some(Err(true)),
                Some(Line::BareNewline) => Some(Err(false)),
                None => None,
            };
            buffer.drain(..used);
            match line {
                Some(line) => out.push(line),
                None => break,
            }
        }
    }
    Ok(out)
}

#[test]
fn lines_are_judged_one_by_one() {
    let whole = |text: &str| Ok(text.as_bytes().to_vec());
    let got = lines(b"NOOP\r\nNO\nA\rB\r\n12345678\r\n123456789\r\n\r\nX", &[100], 8).unwrap();
    assert_eq!(got, [whole("NOOP"), Err(false), Err(false), whole("12345678"), Err(true), whole("")]);
    assert_eq!(lines(&vec![b'x'; 70_000], &[1000], 8), Err(Endless));
}

fn alphabet() -> impl Strategy<Value = Vec<u8>> {
    let octet =
        prop_oneof![4 => Just(b'\r'), 4 => Just(b'\n'), 4 => Just(b'.'), 3 => Just(b'a'), 1 => any::<u8>()];
    proptest::collection::vec(octet, 0..60)
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1usize..8, 1..20)
}

fn pieces<'a>(octets: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let (mut out, mut rest, mut cuts) = (Vec::new(), octets, cuts.iter().cycle());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
        out.push(piece);
        rest = after;
    }
    out
}

proptest! {
    #[test]
    fn octets_cut_anywhere_give_the_same_content(octets in alphabet(), cuts in cuts()) {
        let (content, fault, rest) = read(&pieces(&octets, &cuts), 40);
        let (whole, whole_fault, whole_rest) = read(&[&octets], 40);
        prop_assert_eq!((fault, &rest), (whole_fault, &whole_rest));
        if fault.is_none() {
            prop_assert_eq!(content, whole);
        }
    }

    #[test]
    fn octets_cut_anywhere_give_the_same_lines(octets in alphabet(), cuts in cuts()) {
        prop_assert_eq!(lines(&octets, &cuts, 6), lines(&octets, &[1000], 6));
    }

    #[test]
    fn what_is_written_is_read_back(octets in alphabet(), cuts in cuts()) {
        // Content as the reader gives it out: no bare CR or LF, no dot that NULs hide.
        let text = String::from_utf8_lossy(&octets).replace("\r\n", "\n");
        let mut text = text.replace(['\r', '\0'], "x").replace('\n', "\r\n");
        let (mut writer, mut wire) = (ContentWriter::default(), Vec::new());
        for piece in pieces(text.as_bytes(), &cuts) {
            writer.write(piece, |octets| wire.extend_from_slice(octets));
        }
        wire.extend_from_slice(writer.end());
        let (content, fault, rest) = read(&[&wire], 1000);
        prop_assert_eq!((fault, rest), (None, Some(Vec::new())));
        if !text.is_empty() && !text.ends_with("\r\n") {
            text.push_str("\r\n");
        }
        prop_assert_eq!(content, text.into_bytes());
    }
}
