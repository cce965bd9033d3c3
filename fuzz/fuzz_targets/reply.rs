//! Any octets as an upstream's replies, cut anywhere: the same replies come out, bounded, and none can forge
//! a line where it is shown or written on.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outpost::smtp::reply::{Reply, ReplyError, ReplyReader};

/// What a reader makes of the pieces, up to its first error.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Reply>, Option<ReplyError>, bool) {
    let (mut reader, mut replies) = (ReplyReader::default(), Vec::new());
    for mut piece in pieces {
        while !piece.is_empty() {
            match reader.read(&mut piece) {
                Ok(Some(reply)) => replies.push(reply),
                Ok(None) => assert!(piece.is_empty(), "octets were left without a reply"),
                Err(error) => return (replies, Some(error), true),
            }
        }
    }
    (replies, None, reader.is_midway())
}

fuzz_target!(|data: &[u8]| {
    let Some((size, octets)) = data.split_first() else { return };
    let whole = read(std::iter::once(octets));
    assert_eq!(whole, read(octets.chunks(usize::from(*size).max(1))), "the cut made a difference");
    for reply in &whole.0 {
        assert!((200..600).contains(&reply.code()));
        assert!(!reply.to_string().contains(|c: char| c.is_control()), "{reply:?}");
        let mut written = Vec::new();
        reply.write_to(&mut written);
        let (again, error, midway) = read(std::iter::once(written.as_slice()));
        assert!(error.is_none() && !midway && again.len() == 1, "{reply:?} is not one reply");
        assert_eq!(again[0].code(), reply.code());
    }
});
