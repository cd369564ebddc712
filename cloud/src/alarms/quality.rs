//! What the figures of an alarm system's quality are counted in, after ANSI/ISA-18.2-2016 (clause 16, Monitoring and assessment)
//! and EEMUA Publication 191.
//!
//! | figure | how | to reach |
//! |---|---|---|
//! | rate | alarms announced ÷ periods of ten minutes ÷ operators | about 1, at most 2 (ISA-18.2, EEMUA 191) |
//! | peak | the most in one period, ÷ operators | at most 10 |
//! | flood | periods with more than ten alarms for each operator, in per cent of all | less than 1 % |
//! | stale | alarms that have stood for more than 24 hours at the end | fewer than 5, with a plan for each |
//! | chattering | conditions raised three times or more within ten minutes | none |
//! | time to acknowledge | from the (last) announcement to the acknowledgement: median and nine tenths | – |
//! | top ten | the ten conditions with most alarms, with their share | together 1 % to 5 % |

use jiff::SignedDuration;

/// What rates are counted in.
pub const PERIOD: SignedDuration = SignedDuration::from_mins(10);
/// Alarms in a period, for each operator, above which it is a flood.
pub const FLOOD: i32 = 10;
/// An alarm that stands for longer is stale.
pub const STALE_AFTER: SignedDuration = SignedDuration::from_hours(24);
/// Conditions that are named.
pub const TOP: i64 = 10;
