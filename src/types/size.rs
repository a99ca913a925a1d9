//! Sizes and times as users write and read them. K, KB and KiB are all 1024, as in dcp.

use std::time::Duration;

/// Parses `4096`, `4M`, `8MB`, `1GiB` into bytes; at least 1.
///
/// # Errors
/// A sentence that says what is wrong, for the command line.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "not a size: write 4096, 512K, 4M or 1GiB".to_string())?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(format!("unknown unit {unit:?}: write K, M, G, T or P")),
    };
    let bytes = number.checked_mul(1 << shift).ok_or("larger than 64 bits hold")?;
    if bytes == 0 {
        return Err("must be at least 1".into());
    }
    Ok(bytes)
}

/// Parses a rate in bytes a second: a size, with `/s` or without.
///
/// # Errors
/// A sentence that says what is wrong, for the command line.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    parse_size(text.strip_suffix("/s").unwrap_or(text))
}

/// Parses `200ms`, `5s`, `1m`, `2h`; a bare number is seconds.
///
/// # Errors
/// A sentence that says what is wrong, for the command line.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "not a time: write 200ms, 5s, 1m or 2h".to_string())?;
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("unknown unit {unit:?}: write ms, s, m or h")),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(|| "too long".into())
}

/// Bytes for a reader: `1.50 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    // a float is exact enough for three digits
    #[allow(clippy::cast_precision_loss)]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_as_in_dcp() {
        assert_eq!(parse_size("1"), Ok(1));
        assert_eq!(parse_size("4M"), Ok(4 << 20));
        assert_eq!(parse_size("8MB"), Ok(8 << 20));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("64k"), Ok(64 << 10));
        for bad in ["", "M", "0", "0M", "4X", "-1", "1.5M", "18446744073709551616", "17179869184G"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_parse_with_their_units() {
        let ms = |text| parse_duration(text).map(|time| time.as_millis());
        assert_eq!(
            [ms("200ms"), ms("5s"), ms("5"), ms("1m"), ms("2h"), ms("0")],
            [200, 5000, 5000, 60_000, 7_200_000, 0].map(Ok)
        );
        for bad in ["", "s", "5x", "-1s", "1.5s", "18446744073709551615h"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bytes_are_shown_with_three_digits() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.50 KiB");
        assert_eq!(human_bytes(u64::MAX), "16384.00 PiB");
    }
}
