//! Octets to lines, octets to content, content to octets.
//!
//! The one place that decides where a line and where a message ends, in both directions. Only CRLF
//! ends a line of content and only CRLF.CRLF ends content (RFC 5321 §2.3.8, §4.1.1.4): whoever
//! disagrees with a neighbour about that can be made to smuggle mail. All of it gives the same
//! result however the octets were cut into reads; properties and a fuzz target hold it to that.
//!
//! - `line`: command lines
//! - `content`: content behind DATA and BDAT
//! - `write`: content the way DATA wants it

mod content;
mod line;
#[cfg(test)]
mod tests;
mod write;

pub use self::{
    content::{ChunkReader, ContentFault, ContentReader},
    line::{COMMAND_LINE_MAX, Endless, Line, LineReader},
    write::ContentWriter,
};
