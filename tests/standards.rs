//! The pages tell the truth about what shows each rule: docs/smtp.md names every dialog, and all that it names
//! exists; docs/security.md has a bound and a test for each attack of a list; docs/reliability.md has a test for
//! each fault of the host, docs/upstream.md for each misbehaviour of an upstream, docs/providers.md for each row
//! of the decision table. And each page is found from the first one.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What stands in backticks.
fn quoted(page: &str) -> impl Iterator<Item = &str> {
    page.split('`').skip(1).step_by(2)
}

/// Every Rust source of ours, in one text.
fn sources() -> String {
    let (mut text, mut folders) = (String::new(), vec![root().join("src"), root().join("tests")]);
    while let Some(folder) = folders.pop() {
        for file in fs::read_dir(folder).expect("a folder") {
            let path: PathBuf = file.expect("a file").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                text.push_str(&fs::read_to_string(path).expect("a source"));
            }
        }
    }
    text
}

fn dialogs() -> BTreeSet<String> {
    let files = fs::read_dir(root().join("tests/transcripts")).expect("the transcripts");
    let names = files.filter_map(|file| file.expect("a file").file_name().into_string().ok());
    names.filter_map(|name| name.strip_suffix(".smtp").map(str::to_owned)).collect()
}

#[test]
fn each_dialog_is_named_on_the_page_of_standards_and_each_one_named_there_exists() {
    let page = fs::read_to_string(root().join("docs/smtp.md")).expect("the page");
    let named: BTreeSet<String> = quoted(&page)
        .filter(|word| {
            word.starts_with(|c: char| c.is_ascii_lowercase())
                && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && (word.contains('-') || root().join(format!("tests/transcripts/{word}.smtp")).exists())
        })
        .map(str::to_owned)
        .collect();
    let dialogs = dialogs();
    let missing: Vec<_> = dialogs.difference(&named).collect();
    assert!(missing.is_empty(), "docs/smtp.md doesn't say what these dialogs show: {missing:#?}");
    let unknown: Vec<_> = named.difference(&dialogs).collect();
    assert!(unknown.is_empty(), "docs/smtp.md names dialogs that don't exist: {unknown:#?}");
}

#[test]
fn each_test_and_file_that_the_pages_of_standards_and_of_faults_name_exists() {
    let sources = sources();
    let dialogs = dialogs();
    for name in ["docs/smtp.md", "docs/reliability.md", "docs/upstream.md", "docs/providers.md"] {
        let page = fs::read_to_string(root().join(name)).expect("the page");
        for word in quoted(&page) {
            let is_of = |also: u8| {
                word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == also)
                    && word.contains(char::from(also))
            };
            // What begins with smtp_ is a key.
            if is_of(b'_') && word.matches('_').count() >= 3 && !word.starts_with("smtp_") {
                let found = sources.contains(&format!("fn {word}("));
                assert!(found, "{name} names {word}: there is no such test");
            } else if is_of(b'-')
                && word.starts_with(|c: char| c.is_ascii_lowercase())
                && !word.starts_with("ses-")
            {
                assert!(dialogs.contains(word), "{name} names {word}: there is no such dialog");
            } else if word.ends_with(".rs") {
                let found = root().join("src").join(word).exists() || root().join(word).exists();
                assert!(found, "{name} names {word}: there is no such file");
            }
        }
    }
}

#[test]
fn each_fault_of_the_host_has_a_row_that_names_what_shows_it() {
    let page = fs::read_to_string(root().join("docs/reliability.md")).expect("the page");
    for number in 1..=20 {
        let row = page.lines().find(|line| line.starts_with(&format!("| D{number} |")));
        let row = row.unwrap_or_else(|| panic!("D{number} has no row"));
        let shown = row.trim_end_matches('|').rsplit(" | ").next().expect("a last column");
        assert!(
            shown.contains('`') || shown.contains("below"),
            "D{number} names nothing that shows it: {shown}"
        );
    }
}

#[test]
fn each_attack_on_the_listener_has_its_row_and_each_bound_and_test_named_there_exists() {
    let page = fs::read_to_string(root().join("docs/security.md")).expect("the page");
    let keys = fs::read_to_string(root().join("docs/configuration.md")).expect("the page of keys");
    let (sources, dialogs) = (sources(), dialogs());
    let (_, section) = page.split_once("### One by one").expect("the list");
    let section = section.split("\n## ").next().expect("its end");
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let numbers: Vec<_> = rows.iter().map(|row| row[0]).filter(|number| number.starts_with('A')).collect();
    assert_eq!(numbers, (1..=26).map(|n| format!("A{n}")).collect::<Vec<_>>());
    let mut bounds = BTreeSet::new();
    for row in rows.iter().skip(1) {
        let [_, attack, happens, bound, shown] = row[..] else { panic!("{row:?} has not five columns") };
        assert!(!happens.is_empty() && quoted(shown).next().is_some(), "{attack}: nothing shows it");
        for name in quoted(shown) {
            let exists = dialogs.contains(name) || sources.contains(&format!("fn {name}("));
            assert!(exists, "{attack}: there is no dialog or test {name}");
        }
        bounds.extend(quoted(bound));
    }
    let known: BTreeSet<_> =
        keys.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let unknown: Vec<_> = bounds.difference(&known).collect();
    assert!(unknown.is_empty(), "there are no keys {unknown:?}");
    let is_bound = |key: &&&str| {
        key.starts_with("smtp_max_")
            || key.starts_with("smtp_min_rate")
            || key.ends_with("timeout") && !key.contains("relay")
    };
    let missing: Vec<_> = known.iter().filter(is_bound).filter(|key| !bounds.contains(**key)).collect();
    assert!(missing.is_empty(), "the list of attacks doesn't name the bounds {missing:?}");
}

#[test]
fn each_document_is_found_from_the_first_one() {
    let docs = root().join("docs");
    let first = fs::read_to_string(docs.join("README.md")).expect("a file");
    for file in fs::read_dir(&docs).expect("a directory") {
        let name = file.expect("a file").file_name().into_string().expect("a name");
        let is_named = name == "README.md" || first.contains(&format!("[{name}]({name})"));
        assert!(!name.ends_with(".md") || is_named, "docs/README.md does not name {name}");
    }
}
