//! Configuration that was damaged: an error or a value, never a panic, never a hang.

use std::time::{Duration, Instant};

use keelson_cli::flag_file;
use keelson_cli::flags;
use keelson_server::config::{Config, GoDuration};
use keelson_server::url::Url;

/// How long one test goes on.
const TIME_BOX: Duration = Duration::from_secs(2);
/// How many cases there are at least, however slow the machine is.
const CASES_MIN: u64 = 500;

const FILE: &str = "# a member
name: 'default'
data-dir: /tmp/none
heartbeat-interval: 100
quota-backend-bytes: 0
listen-client-urls: http://localhost:2379,unix://a.sock
auto-compaction-retention: \"1\"
cors: null
strict-reconfig-check: true
log-outputs: [stderr, a.log]
grpc-keepalive-min-time: 5000000000
feature-gates: InitialCorruptCheck=true
client-transport-security:
  cert-file: &anchor x
  client-cert-auth: false
peer-transport-security: {key-file: *anchor}
";

/// `SplitMix64`: every run is the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// Text that was damaged, and is text still.
    fn hurt(&mut self, text: &str, bits: &[&str]) -> String {
        let mut letters: Vec<char> = text.chars().collect();
        for _ in 0..=self.below(4) {
            let at = self.below(letters.len() + 1);
            let end = (at + 1 + self.below(6)).min(letters.len());
            match self.below(5) {
                0 => letters.truncate(at.max(1)),
                1 => drop(letters.drain(at..end.max(at))),
                2 => {
                    let part = letters[at..end.max(at)].to_vec();
                    letters.splice(at..at, part).for_each(drop);
                }
                3 => {
                    let letter = char::from_u32(self.below(0x11_0000) as u32).unwrap_or('\0');
                    letters.insert(at, letter);
                }
                _ => {
                    let bit = bits[self.below(bits.len())];
                    let times = [1, 1, 2, 40][self.below(4)];
                    let bit = bit.repeat(times);
                    letters.splice(at..at, bit.chars()).for_each(drop);
                }
            }
        }
        letters.into_iter().collect()
    }
}

fn drive(seed: u64, texts: &[&str], bits: &[&str], mut each: impl FnMut(&str)) {
    let started = Instant::now();
    let mut cases = 0;
    while cases < CASES_MIN || started.elapsed() < TIME_BOX {
        let mut random = Random(seed << 32 | cases);
        let text = texts[random.below(texts.len())];
        let damaged = random.hurt(text, bits);
        let begun = Instant::now();
        each(&damaged);
        assert!(begun.elapsed() < Duration::from_secs(60), "{damaged:?}");
        cases += 1;
    }
}

#[test]
fn damaged_files_are_refused_or_read() {
    assert!(flag_file::parse(FILE).is_ok());
    let bits = [
        "\"",
        "'",
        ": ",
        "\n",
        "\t",
        "[",
        "{",
        "- ",
        "&a ",
        "*a",
        "!!",
        "---\n",
        "|",
        ">",
        "0x",
        "-1",
        "1e999",
        "99999999999999999999",
        "<<: *anchor",
        "?",
        "\u{feff}",
        "~",
    ];
    let (mut good, mut bad) = (0, 0);
    drive(1, &[FILE], &bits, |text| match flag_file::parse(text) {
        Ok(_) => good += 1,
        Err(_) => bad += 1,
    });
    assert!(good > 0 && bad > 0, "{good} {bad}");
}

#[test]
fn a_file_that_would_grow_without_end_is_refused() {
    let deep = "[".repeat(200_000);
    assert!(flag_file::parse(&deep).is_err());
    let deep = (0..20_000)
        .map(|level| " ".repeat(level % 200) + "a:\n")
        .collect::<String>();
    drop(flag_file::parse(&deep));
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 10].join(",");
        bomb += &format!("a{level}: &a{level} [{inner}]\n");
    }
    assert!(flag_file::parse(&bomb).is_err());
}

#[test]
fn damaged_urls_are_refused_or_can_be_written_and_read_again() {
    let urls = [
        "http://127.0.0.1:2379",
        "https://[::1]:2380",
        "unix://some/path.sock",
        "http://example.com:80",
        "http://a:1,http://b:2",
    ];
    let bits = [
        "[", "]", ":", "/", "@", "%", "%zz", "?", "#", "..", "//", "65536", ",",
    ];
    drive(2, &urls, &bits, |text| {
        if let Ok(url) = Url::parse(text) {
            let again = Url::parse(url.as_str());
            assert!(again.is_ok_and(|again| again == url), "{text:?}");
            drop((
                url.host(),
                url.port(),
                url.socket_path(),
                url.bind_address(),
            ));
        }
        drop(Url::parse_list(text));
    });
}

#[test]
fn damaged_durations_are_refused_or_come_back() {
    let durations = [
        "1h0m0.5s",
        "-3ms",
        "5\u{b5}s",
        "0",
        "2562047h47m16.854775807s",
        "+.5s",
    ];
    let bits = [".", "-", "h", "ns", "9999999999", "0", "\u{3bc}", "1"];
    drive(3, &durations, &bits, |text| {
        if let Ok(duration) = GoDuration::parse(text) {
            let again = GoDuration::parse(&duration.to_string());
            assert_eq!(again, Ok(duration), "{text:?}");
        }
    });
}

#[test]
fn damaged_values_of_every_flag_are_refused_or_taken() {
    let values = [
        "",
        "true",
        "100",
        "1h",
        "http://a:1",
        "a=http://a:1",
        "x,y",
        "-1",
    ];
    let bits = [
        "=",
        ",",
        "9999999999999999999",
        "-",
        ".",
        "[",
        "\0",
        "\n",
        "1e5",
        "0x1f",
    ];
    drive(4, &values, &bits, |text| {
        for flag in flags::FLAGS {
            let mut config = Config::default();
            if flag.set(&mut config, text).is_ok() {
                // What it is checked for, too, is an error or a value.
                drop(config.check());
            }
        }
    });
    let words = [
        "--name=a",
        "--data-dir",
        "-name",
        "--",
        "-h=x",
        "--no-such",
        "--initial-cluster=a=b",
    ];
    drive(5, &words, &["-", "=", " ", "\0"], |text| {
        drop(flags::parse(&[text.to_owned(), "x".to_owned()]));
    });
}
