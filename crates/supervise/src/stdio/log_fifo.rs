//! The shim's log: lines for containerd through the bundle's `log` fifo. Never
//! waits: not for a reader, not for room. What cannot be written is dropped
//! and counted, and the count goes out with the next line that can. Nothing in
//! here logs, or a broken log would feed itself.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use vigil_sys::fifo;

/// `PIPE_BUF`: so much is written whole or not at all, also when others write.
const LINE_MAX: usize = 4096;
const CUT: &str = "…";

/// A [`Log`] that writes logfmt lines, as the Go shims do:
/// `time="…" level=warning msg="…" runtime=io.containerd.vigil.v2`.
#[derive(Debug)]
pub struct LogFifo {
    path: PathBuf,
    level: LevelFilter,
    /// Follows every line: ` key=value …`.
    suffix: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    fifo: Option<File>,
    dropped: u64,
}

impl LogFifo {
    /// Nothing is opened before the first line, and nothing is created.
    /// `fields` follow every line, values quoted where they must be.
    pub fn new(path: &Path, level: LevelFilter, fields: &[(&str, &str)]) -> LogFifo {
        let mut suffix = String::new();
        for (key, value) in fields {
            let _ = write!(suffix, " {key}=");
            push_value(&mut suffix, value, usize::MAX);
        }
        LogFifo {
            path: path.to_owned(),
            level,
            suffix,
            state: Mutex::default(),
        }
    }

    /// Makes it the program's logger, for good. `false`: there is one already.
    pub fn install(self) -> bool {
        log::set_max_level(self.level);
        log::set_logger(Box::leak(Box::new(self))).is_ok()
    }

    /// Lines dropped and not yet reported.
    pub fn dropped(&self) -> u64 {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .dropped
    }

    fn line(&self, level: Level, text: &str) -> String {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut line = String::with_capacity(96 + text.len() + self.suffix.len());
        line.push_str("time=\"");
        push_time(&mut line, since.as_secs(), since.subsec_nanos());
        let _ = write!(line, "\" level={} msg=", name(level));
        let room = LINE_MAX.saturating_sub(line.len() + self.suffix.len() + 1);
        push_value(&mut line, text, room);
        line.push_str(&self.suffix);
        line.push('\n');
        line
    }

    fn put(&self, level: Level, text: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.fifo.is_none() {
            // ENXIO: nobody reads it now; the next line tries again.
            state.fifo = fifo::open_writer(&self.path).ok().map(File::from);
        }
        if state.dropped > 0 {
            let report = format!("{} log lines dropped: nobody read them", state.dropped);
            if !state.write(&self.line(Level::Warn, &report)) {
                state.dropped += 1;
                return;
            }
            state.dropped = 0;
        }
        if !state.write(&self.line(level, text)) {
            state.dropped += 1;
        }
    }
}

impl State {
    fn write(&mut self, line: &str) -> bool {
        let Some(fifo) = &self.fifo else { return false };
        match (&*fifo).write(line.as_bytes()) {
            // Not more than PIPE_BUF: whole, or not at all.
            Ok(count) => count == line.len(),
            Err(e) => {
                // Full is for now; everything else (EPIPE: the reader left)
                // wants it opened again.
                if e.kind() != std::io::ErrorKind::WouldBlock {
                    self.fifo = None;
                }
                false
            }
        }
    }
}

impl Log for LogFifo {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            match record.args().as_str() {
                Some(text) => self.put(record.level(), text),
                None => self.put(record.level(), &record.args().to_string()),
            }
        }
    }

    fn flush(&self) {}
}

/// logrus's names.
fn name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// As it is if plain, else quoted; what makes more than `room` bytes loses its
/// middle, since the reason of a failure stands at the end.
fn push_value(line: &mut String, text: &str, room: usize) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !text.is_empty() && text.len() <= room && text.chars().all(plain) {
        line.push_str(text);
        return;
    }
    let room = room.saturating_sub(2);
    line.push('"');
    let whole: usize = text.chars().map(|c| escaped(c).len()).sum();
    if whole <= room {
        line.extend(text.chars().map(escaped));
    } else {
        let half = room.saturating_sub(CUT.len()) / 2;
        line.extend(at_most(half, text.chars()));
        line.push_str(CUT);
        let mut tail = at_most(half, text.chars().rev());
        tail.reverse();
        line.extend(tail);
    }
    line.push('"');
}

/// The first of these that together take no more than `room` bytes.
fn at_most(room: usize, chars: impl Iterator<Item = char>) -> Vec<String> {
    let mut left = room;
    let fits = |piece: &String| {
        let fits = left.checked_sub(piece.len());
        left = fits.unwrap_or(left);
        fits.is_some()
    };
    chars.map(escaped).take_while(fits).collect()
}

fn escaped(c: char) -> String {
    match c {
        '"' => "\\\"".to_owned(),
        '\\' => "\\\\".to_owned(),
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\t' => "\\t".to_owned(),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    }
}

/// RFC 3339 in UTC with nine digits after the point.
fn push_time(line: &mut String, secs: u64, nanos: u32) {
    let (days, of_day) = (secs / 86_400, secs % 86_400);
    // Days since 0000-03-01: a year that ends with February has its leap day
    // last, so that months and years follow by division.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_based = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_based + 2) / 5 + 1;
    let month = if march_based < 10 {
        march_based + 3
    } else {
        march_based - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    let _ = write!(
        line,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z"
    );
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::io::Read;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fifo::make(&path, 0o600).unwrap();
        (dir, path)
    }

    fn read(fd: &mut File) -> String {
        let mut bytes = vec![0; 1 << 20];
        let count = fd.read(&mut bytes).unwrap_or(0);
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    fn time(secs: u64) -> String {
        let mut text = String::new();
        push_time(&mut text, secs, 7);
        text
    }

    #[test]
    fn times_are_as_date_says() {
        for (secs, expected) in [
            (0, "1970-01-01T00:00:00.000000007Z"),
            (951_782_399, "2000-02-28T23:59:59.000000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000000007Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000007Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000007Z"),
        ] {
            assert_eq!(time(secs), expected);
        }
    }

    #[test]
    fn a_line_is_logfmt_and_never_too_long() {
        let (_dir, path) = place();
        let fifo = LogFifo::new(
            &path,
            LevelFilter::Info,
            &[("runtime", "a.b"), ("id", "x y")],
        );
        let line = fifo.line(Level::Warn, "say \"hi\"\n\\ \u{1} ä");
        let tail = r#" level=warning msg="say \"hi\"\n\\ \u0001 ä" runtime=a.b id="x y""#;
        assert_eq!(line.split_once('Z').unwrap().1, format!("\"{tail}\n"));
        for (text, last) in [
            ("x".repeat(9000) + ": no such file", "xx: no such file"),
            ("\n".repeat(5000), "\\n\\n"),
            ("ä".repeat(4000), "ää"),
            ("\u{1}".repeat(999), "\\u0001"),
        ] {
            let line = fifo.line(Level::Error, &text);
            assert!(line.len() <= LINE_MAX, "{}", line.len());
            assert!(line.len() > LINE_MAX - 16, "{}", line.len());
            assert!(line.contains(CUT), "{line}");
            let end = format!("{last}\" runtime=a.b id=\"x y\"\n");
            assert!(line.ends_with(&end), "{line}");
        }
    }

    #[test]
    fn nobody_reading_blocks_nobody_and_is_reported_later() {
        let (_dir, path) = place();
        let log = LogFifo::new(&path, LevelFilter::Info, &[]);
        log.put(Level::Info, "early");
        assert_eq!(log.dropped(), 1, "no reader");
        let mut reader = File::from(fifo::open_reader(&path).unwrap());
        log.put(Level::Info, "heard");
        let text = read(&mut reader);
        assert!(text.contains("msg=\"1 log lines dropped"), "{text}");
        assert!(text.contains("msg=heard"), "{text}");
        // Full.
        for _ in 0..100_000 {
            log.put(Level::Info, "flood");
        }
        let lost = log.dropped();
        assert!(lost > 90_000, "{lost}");
        let kept = read(&mut reader).lines().count() as u64;
        assert_eq!(kept + lost, 100_000, "no line torn, none uncounted");
        log.put(Level::Info, "after");
        let text = read(&mut reader);
        assert!(
            text.contains(&format!("{lost} log lines dropped")),
            "{text}"
        );
        // The reader leaves and another comes.
        drop(reader);
        log.put(Level::Info, "into the void");
        assert_eq!(log.dropped(), 1);
        let mut reader = File::from(fifo::open_reader(&path).unwrap());
        log.put(Level::Info, "again");
        assert!(read(&mut reader).contains("msg=again"));
        // The fifo itself is gone: still no error, still no block.
        drop(reader);
        std::fs::remove_file(&path).unwrap();
        log.put(Level::Info, "nowhere");
        assert!(log.dropped() > 0);
    }
}
