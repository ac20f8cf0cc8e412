//! Sets of numbers as people write them: `3,17,200-203`.

use std::fmt;

/// Largest number that can be in a set: no BitString has more bits.
const MAX: u32 = replicator_common::limits::MAX_BITS as u32;

/// Why a text is no set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not a number or two.
    #[error("`{0}` is neither a number nor a range like 200-203")]
    Syntax(String),
    /// The end is before the start.
    #[error("the range {0}-{1} ends before it starts")]
    Backwards(u32, u32),
    /// Beyond every BitString.
    #[error("{0} is beyond the longest BitString, which has {MAX} bits")]
    TooLarge(u32),
}

/// Reads a set. The numbers come as they are written.
///
/// # Errors
/// Where a part is no number, no range, or larger than any BitString has bits.
pub fn parse(text: &str) -> Result<Vec<u32>, RangeError> {
    let mut set = Vec::new();
    for part in text.split(',') {
        let part = part.trim();
        let (start, end) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| RangeError::Syntax(part.to_owned()));
        let (start, end) = (number(start)?, number(end)?);
        if end > MAX {
            return Err(RangeError::TooLarge(end));
        }
        if end < start {
            return Err(RangeError::Backwards(start, end));
        }
        set.extend(start..=end);
    }
    Ok(set)
}

/// Writes ascending numbers, each run of neighbors as a range.
pub struct Ranges<I>(pub I);

impl<I: Iterator<Item = u32> + Clone> fmt::Display for Ranges<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.0.clone().peekable();
        let mut separator = "";
        while let Some(start) = numbers.next() {
            let mut end = start;
            while let Some(next) = numbers.next_if(|&next| next == end + 1) {
                end = next;
            }
            write!(f, "{separator}{start}")?;
            if end > start {
                write!(f, "-{end}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_read_as_it_is_written() {
        assert_eq!(parse("3,17,200-203").unwrap(), [3, 17, 200, 201, 202, 203]);
        assert_eq!(parse(" 7 , 5 - 5 ").unwrap(), [7, 5]);
        assert_eq!(parse("1024").unwrap(), [1024]);
    }

    #[test]
    fn what_is_no_set_is_refused_with_the_part_that_is_wrong() {
        for text in ["", "3,", "x", "3-", "-3", "1-2-3", "0x10", "3;4"] {
            assert!(matches!(parse(text), Err(RangeError::Syntax(_))), "{text}");
        }
        assert_eq!(
            parse("1,a-3").unwrap_err().to_string(),
            "`a-3` is neither a number nor a range like 200-203"
        );
        assert_eq!(parse("9-7"), Err(RangeError::Backwards(9, 7)));
        assert_eq!(parse("0-4294967295"), Err(RangeError::TooLarge(u32::MAX)));
    }

    #[test]
    fn runs_are_written_as_ranges() {
        let written = |set: &[u32]| Ranges(set.iter().copied()).to_string();
        assert_eq!(written(&[3, 17, 200, 201, 202, 203]), "3,17,200-203");
        assert_eq!(written(&[1, 2, 5]), "1-2,5");
        assert_eq!(written(&[]), "");
    }
}
