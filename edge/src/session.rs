//! The rules of delivery, without I/O: what to send next, when to send it again, what a receipt allows to forget.
//!
//! - In each lane a few batches are in flight at once; each lane has its own window, so events never wait behind
//!   summaries.
//! - Only a [`Receipt`] of our epoch, for numbers that the outbox has given out, moves a lane on. An old, repeated
//!   or impossible one changes nothing.
//! - When no receipt came in time, or one says that the cloud misses something, the lane starts again behind
//!   the last receipt. The time allowed doubles with each such start up to [`Settings::timeout_max`], and is reset
//!   by progress.
//! - A new connection starts each lane behind its last receipt.

use std::{collections::VecDeque, time::Duration};

use gemba_shared::message::{Epoch, Lane, Receipt};

/// The limits of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Batches of a lane on their way at once.
    pub batches_max: usize,
    /// Their bytes, of a lane.
    pub in_flight_bytes_max: usize,
    pub batch_records_max: usize,
    pub batch_bytes_max: usize,
    /// How long a receipt may take at first.
    pub timeout: Duration,
    pub timeout_max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batches_max: 8,
            in_flight_bytes_max: 256 * 1_024,
            batch_records_max: 512,
            batch_bytes_max: 64 * 1_024,
            timeout: Duration::from_secs(5),
            timeout_max: Duration::from_mins(1),
        }
    }
}

/// The numbers that the outbox holds of a lane: `oldest..next`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub oldest: u64,
    pub next: u64,
}

/// What should be read from the outbox and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub lane: Lane,
    pub from: u64,
    pub records_max: usize,
    pub bytes_max: usize,
}

/// What a receipt meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// The outbox may forget the lane through this number.
    Release(u64),
    /// Nothing new.
    Old,
    /// It is of an outbox that is gone.
    OtherEpoch,
    /// It is of numbers that were never given out.
    Impossible,
}

/// How the cloud answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answering {
    /// Nothing waits for an answer.
    Idle,
    /// Receipts come.
    Yes,
    /// Connected, but what was sent is not receipted.
    No,
}

/// The delivery of both lanes.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    epoch: Epoch,
    connected: bool,
    lanes: [LaneState; 2],
}

#[derive(Debug)]
struct LaneState {
    /// Receipted through this number.
    through: u64,
    /// The next number to send.
    cursor: u64,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    timeout: Duration,
    /// When the lane last moved: a receipt that told something, or the first batch after none in flight.
    moved_us: i64,
    restarted_us: i64,
    resends: u64,
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    last: u64,
    bytes: usize,
}

const fn index(lane: Lane) -> usize {
    match lane {
        Lane::Events => 0,
        Lane::Summaries => 1,
    }
}

impl Session {
    #[must_use]
    pub fn new(settings: Settings, epoch: Epoch) -> Self {
        let lane = || LaneState {
            through: 0,
            cursor: 1,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            timeout: settings.timeout,
            moved_us: 0,
            restarted_us: i64::MIN / 2,
            resends: 0,
        };
        Self { settings, epoch, connected: false, lanes: [lane(), lane()] }
    }

    /// A connection stands: everything without a receipt is sent (again).
    pub fn connected(&mut self, mono_us: i64) {
        self.connected = true;
        for lane in &mut self.lanes {
            lane.restart(mono_us);
            lane.timeout = self.settings.timeout;
        }
    }

    pub fn disconnected(&mut self) {
        self.connected = false;
    }

    /// What to send now; events first. The caller reads it from the outbox, publishes it, and calls
    /// [`Session::sent`] before it asks again.
    #[must_use]
    pub fn next(&mut self, held: impl Fn(Lane) -> Held) -> Option<Wanted> {
        if !self.connected {
            return None;
        }
        for lane in Lane::ALL {
            let held = held(lane);
            let state = &mut self.lanes[index(lane)];
            state.cursor = state.cursor.max(held.oldest);
            let full = state.in_flight.len() >= self.settings.batches_max
                || state.in_flight_bytes >= self.settings.in_flight_bytes_max;
            if !full && state.cursor < held.next {
                return Some(Wanted {
                    lane,
                    from: state.cursor,
                    records_max: self.settings.batch_records_max,
                    bytes_max: self.settings.batch_bytes_max,
                });
            }
        }
        None
    }

    /// A batch through `last` is on its way.
    pub fn sent(&mut self, lane: Lane, last: u64, bytes: usize, mono_us: i64) {
        let state = &mut self.lanes[index(lane)];
        if state.in_flight.is_empty() {
            state.moved_us = mono_us;
        }
        state.in_flight.push_back(InFlight { last, bytes });
        state.in_flight_bytes += bytes;
        state.cursor = last + 1;
    }

    /// What an authentic receipt means; `next` is the number that the outbox gives out next in its lane.
    pub fn receipt(&mut self, receipt: &Receipt, next: u64, mono_us: i64) -> Judged {
        if receipt.epoch != self.epoch {
            return Judged::OtherEpoch;
        }
        if receipt.through >= next {
            return Judged::Impossible;
        }
        let state = &mut self.lanes[index(receipt.lane)];
        if receipt.through <= state.through {
            // The cloud stands where it stood although more was sent: it misses the batch behind. One round
            // trip of late answers must not start the lane again and again.
            let pause_us = micros(self.settings.timeout) / 4;
            let misses = !state.in_flight.is_empty()
                && receipt.through == state.through
                && mono_us - state.restarted_us.max(state.moved_us) >= pause_us;
            if misses {
                state.resends += 1;
                state.restart(mono_us);
            }
            return Judged::Old;
        }
        state.through = receipt.through;
        state.cursor = state.cursor.max(receipt.through + 1);
        while state.in_flight.front().is_some_and(|batch| batch.last <= receipt.through) {
            if let Some(batch) = state.in_flight.pop_front() {
                state.in_flight_bytes -= batch.bytes;
            }
        }
        state.moved_us = mono_us;
        state.timeout = self.settings.timeout;
        Judged::Release(receipt.through)
    }

    /// Starts again the lanes whose receipts are overdue.
    pub fn tick(&mut self, mono_us: i64) {
        for state in &mut self.lanes {
            if self.connected && !state.in_flight.is_empty() && mono_us - state.moved_us >= micros(state.timeout) {
                state.resends += 1;
                state.restart(mono_us);
                state.timeout = (state.timeout * 2).min(self.settings.timeout_max);
            }
        }
    }

    /// Whether the cloud answers; `held` as for [`Session::next`].
    #[must_use]
    pub fn answering(&self) -> Answering {
        let waiting = |lane: &LaneState| !lane.in_flight.is_empty() || lane.timeout > self.settings.timeout;
        let overdue = |lane: &LaneState| lane.timeout > self.settings.timeout;
        if self.lanes.iter().any(overdue) {
            Answering::No
        } else if self.lanes.iter().any(waiting) {
            Answering::Yes
        } else {
            Answering::Idle
        }
    }

    /// How often a lane was started again since the start.
    #[must_use]
    pub fn resends(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.resends).sum()
    }
}

impl LaneState {
    fn restart(&mut self, mono_us: i64) {
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.cursor = self.through + 1;
        self.moved_us = mono_us;
        self.restarted_us = mono_us;
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
