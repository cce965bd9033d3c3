//! `outpost schema`: a JSON Schema of dotcloud.yml, for editors.

use super::output;
use crate::config;

pub(super) fn run() {
    output::json(&config::schema());
}
