//! Which readings of one sensor an interval has counted, so that one that comes again is known.

/// How many readings of a sensor an interval remembers at most, those with the latest times. At a reading each 10 ms
/// that is 40 s.
pub(super) const REMEMBERED_MAX: usize = 4_096;
/// Bits of a mark that are the value's; the others are its time's, in microseconds from the interval's start: 12 days.
const VALUE_BITS: u32 = 24;

/// Marks in ascending order, which is that of their times. Of two readings of one sensor with the very same time, one in 16 million
/// is taken for the other though their values differ.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Seen(Vec<u64>);

impl Seen {
    /// Whether a reading so long after the interval's start came before; remembers it.
    pub(super) fn is_again(&mut self, offset_us: i64, value: f64) -> bool {
        let value = value.to_bits().wrapping_mul(0xd6e8_feb8_6659_fd93) >> (64 - VALUE_BITS);
        let mark = (offset_us as u64) << VALUE_BITS | value;
        // Readings come in order, nearly always.
        if self.0.last().is_none_or(|last| *last < mark) {
            self.0.push(mark);
        } else if let Err(place) = self.0.binary_search(&mark) {
            self.0.insert(place, mark);
        } else {
            return true;
        }
        if self.0.len() > REMEMBERED_MAX {
            self.0.drain(..REMEMBERED_MAX / 4);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_is_known_in_any_order() {
        let mut seen = Seen::default();
        let readings: Vec<(i64, f64)> =
            (0..2_000_i64).map(|n| ((n * 7_919) % 10_000 * 1_000, (n % 3) as f64 / 10.0)).collect();
        assert!(readings.iter().all(|(offset, value)| !seen.is_again(*offset, *value)));
        assert!(readings.iter().rev().all(|(offset, value)| seen.is_again(*offset, *value)));
        assert!(!seen.is_again(1_000, -5.0), "another value at the same time");
    }

    #[test]
    fn the_latest_are_remembered_and_the_memory_is_bounded() {
        let mut seen = Seen::default();
        for n in 0..3 * REMEMBERED_MAX as i64 {
            assert!(!seen.is_again(n, 1.0));
        }
        assert!(seen.0.len() <= REMEMBERED_MAX);
        assert!((3 * REMEMBERED_MAX as i64 - 3_000..3 * REMEMBERED_MAX as i64).all(|n| seen.is_again(n, 1.0)));
    }
}
