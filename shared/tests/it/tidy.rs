//! The rules of the house that a compiler does not check: who may use whom, what a file begins with, how long
//! it may be, and that ARCHITECTURE.md tells what each file is for.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file before its tests; a longer one says why with a line `// tidy: long, because …`.
const LINES_MAX: usize = 450;
/// The crates whose `lib.rs` lists modules in the order in which data flows.
const DIRECTED: [&str; 2] = ["edge", "cloud"];
const CRATES: [&str; 4] = ["edge", "cloud", "shared", "shared/mqtt"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate has a parent").to_path_buf()
}

/// All files with one of these endings below a directory.
fn files(directory: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries {
            let path = entry.expect("a directory entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !matches!(name.as_str(), "node_modules" | "dist" | "target" | ".git") {
                    directories.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The part of a source file before its unit tests.
fn without_tests(source: &str) -> &str {
    source.split("\n#[cfg(test)]\nmod tests").next().unwrap_or(source)
}

#[track_caller]
fn nothing(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// The modules that `crate::…` paths in a source name.
fn used_modules(source: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut used = Vec::new();
    for (at, _) in source.match_indices("crate::") {
        // `gemba_x::crate::` cannot be; `$crate::` is a macro's.
        if source[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &source[at + "crate::".len()..];
        let Some(list) = rest.strip_prefix('{') else {
            used.push(word(rest));
            continue;
        };
        let mut depth = 1;
        let mut start = true;
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => start = true,
                c if start && depth == 1 && !c.is_whitespace() => {
                    used.push(word(&list[i..]));
                    start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    used
}

#[test]
fn modules_use_only_what_stands_above_them() {
    let mut faults = Vec::new();
    for name in DIRECTED {
        let source = root().join(name).join("src");
        let order: Vec<String> = read(&source.join("lib.rs"))
            .lines()
            .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';').map(String::from))
            .collect();
        assert!(order.len() > 3, "{name}/src/lib.rs lists its modules");
        for path in files(&source, &[".rs"]) {
            let inside = path.strip_prefix(&source).expect("it was found there");
            let module = inside.iter().next().unwrap_or_default().to_string_lossy().replace(".rs", "");
            let Some(place) = order.iter().position(|known| *known == module) else {
                continue; // lib.rs and main.rs
            };
            for used in used_modules(without_tests(&read(&path))) {
                match order.iter().position(|known| *known == used) {
                    Some(other) if other > place => {
                        faults.push(format!("{name}/src/{}: uses `{used}`, which stands below it", inside.display()));
                    }
                    _ => {}
                }
            }
        }
    }
    nothing(&faults);
}

#[test]
fn used_modules_are_found() {
    let source = "use crate::{\n    a::{B, c::D},\n    e,\n};\nfn f() { crate::g::h(); $crate::no!() }";
    assert_eq!(used_modules(source), ["a", "e", "g"]);
}

#[test]
fn every_file_says_what_it_is_for_and_ends_in_time() {
    let mut faults = Vec::new();
    for name in CRATES {
        for path in files(&root().join(name).join("src"), &[".rs"]) {
            let source = read(&path);
            if !source.starts_with("//! ") {
                faults.push(format!("{}: begin with `//! ` and what it is for", path.display()));
            }
            let lines = without_tests(&source).lines().count();
            let tests = path.ends_with("tests.rs");
            if !tests && lines > LINES_MAX && !source.contains("// tidy: long, because ") {
                faults.push(format!("{}: {lines} lines, {LINES_MAX} is the limit: cut it in two", path.display()));
            }
            if path.ends_with("mod.rs") {
                faults.push(format!("{}: no mod.rs", path.display()));
            }
        }
    }
    nothing(&faults);
}

#[test]
fn architecture_names_every_file() {
    let map = read(&root().join("ARCHITECTURE.md"));
    let mut faults = Vec::new();
    for directory in ["edge", "cloud", "shared", "models", "systemd", "deploy"] {
        let endings = [".rs", ".sql", ".ts", ".svelte", ".py", ".service", ".mjs"];
        for path in files(&root().join(directory), &endings) {
            let inside = path.strip_prefix(root()).expect("it was found there").display().to_string();
            // They stand beside what they test, and bear its name.
            if inside.ends_with("/tests.rs") || (inside.ends_with(".test.ts") && !inside.contains("/e2e/")) {
                continue;
            }
            if !map.contains(&format!("`{inside}`")) {
                faults.push(format!("ARCHITECTURE.md: a line for `{inside}` is missing"));
            }
        }
    }
    for line in map.lines() {
        let Some(path) = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()) else { continue };
        if path.contains('/') && !root().join(path).exists() {
            faults.push(format!("ARCHITECTURE.md: `{path}` does not exist"));
        }
    }
    nothing(&faults);
}
