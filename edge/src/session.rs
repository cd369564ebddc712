//! The rules of delivery, without I/O: what to send next, when to send it again, what a receipt allows to forget.
//!
//! - In each lane some batches are in flight at once; each lane has its own window, so events never wait behind
//!   summaries. A window grows while batches are receipted about as fast as the link and the cloud can at their best, and
//!   shrinks when they begin to queue ([`window`]): what is live does not wait behind a backlog.
//! - Only a [`Receipt`] of our epoch, for the record that the outbox has under its number, moves a lane on. An old or
//!   repeated one changes nothing.
//! - A receipt for numbers never given out, or for another record than ours, says that the outbox is an old copy, or that
//!   another gateway goes by the same identity: [`Judged::Impossible`]. The outbox then begins a new epoch, and the
//!   session with it ([`Session::renewed`]).
//! - When no receipt came in time, or one says that the cloud misses something, the lane starts again behind
//!   the last receipt. The time allowed doubles with each such start up to [`Settings::timeout_max`], and comes down with
//!   progress.
//! - A new connection starts each lane behind its last receipt.
//! - Where bytes are metered, [`meter`] says what may be sent.

use std::{collections::VecDeque, time::Duration};

use gemba_shared::message::{Epoch, Lane, Receipt};

pub mod meter;
pub mod window;

use meter::{CONNECTION_BYTES, Meter, Traffic};
use window::Window;

/// The least that a batch may have while its window is small.
const BATCH_BYTES_MIN: usize = 4 * 1_024;

/// The limits of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Batches of a lane on their way at once.
    pub batches_max: usize,
    pub batch_records_max: usize,
    /// Of the records, before they are compressed.
    pub batch_bytes_max: usize,
    /// How long a receipt may take at first.
    pub timeout: Duration,
    pub timeout_max: Duration,
    /// What may be sent in the long run; `None` where bytes cost nothing.
    pub bytes_per_second_max: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batches_max: 16,
            batch_records_max: 512,
            batch_bytes_max: 64 * 1_024,
            timeout: Duration::from_secs(5),
            timeout_max: Duration::from_mins(1),
            bytes_per_second_max: None,
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

/// What the outbox knows of a receipt's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The number that it gives out next in this lane.
    pub next: u64,
    /// The digest of the record that it holds under the receipt's number; `None` where it holds none, or a gap
    /// in its place.
    pub digest: Option<u32>,
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
    /// It is of records that this outbox never made.
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
    meter: Meter,
}

#[derive(Debug)]
struct LaneState {
    /// Receipted through this number.
    through: u64,
    /// The next number to send.
    cursor: u64,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    window: Window,
    timeout: Duration,
    /// No receipt came since the lane was started again for want of one.
    overdue: bool,
    /// When the lane last moved: a receipt that told something, or the first batch after none in flight.
    moved_us: i64,
    restarted_us: i64,
    resends: u64,
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    last: u64,
    bytes: usize,
    sent_us: i64,
}

const fn index(lane: Lane) -> usize {
    match lane {
        Lane::Events => 0,
        Lane::Summaries => 1,
    }
}

const fn traffic(lane: Lane) -> Traffic {
    match lane {
        Lane::Events => Traffic::Events,
        Lane::Summaries => Traffic::Summaries,
    }
}

impl Session {
    #[must_use]
    pub fn new(settings: Settings, epoch: Epoch, mono_us: i64) -> Self {
        let lanes = Lane::ALL.map(|lane| LaneState::new(&settings, lane));
        let meter = Meter::new(settings.bytes_per_second_max, mono_us);
        Self { settings, epoch, connected: false, lanes, meter }
    }

    /// A connection stands: everything without a receipt is sent (again).
    pub fn connected(&mut self, mono_us: i64) {
        self.connected = true;
        self.meter.charge(Traffic::Events, CONNECTION_BYTES);
        for lane in &mut self.lanes {
            lane.restart(mono_us);
            lane.timeout = self.settings.timeout;
            lane.overdue = false;
        }
    }

    pub fn disconnected(&mut self) {
        self.connected = false;
    }

    /// The outbox gave what it holds new numbers in a new epoch: all of it is sent.
    pub fn renewed(&mut self, epoch: Epoch, mono_us: i64) {
        self.epoch = epoch;
        for (state, lane) in self.lanes.iter_mut().zip(Lane::ALL) {
            *state = LaneState { resends: state.resends, ..LaneState::new(&self.settings, lane) };
            state.restart(mono_us);
        }
    }

    /// The life of the outbox that is delivered.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What to send now; events first. The caller reads it from the outbox, publishes it, and calls
    /// [`Session::sent`] before it asks again.
    #[must_use]
    pub fn next(&mut self, held: impl Fn(Lane) -> Held, mono_us: i64) -> Option<Wanted> {
        if !self.connected {
            return None;
        }
        for lane in Lane::ALL {
            let held = held(lane);
            let state = &mut self.lanes[index(lane)];
            // What the outbox no longer holds was receipted to it, or is told as a gap.
            state.through = state.through.max(held.oldest.saturating_sub(1));
            state.cursor = state.cursor.max(held.oldest);
            let full =
                state.in_flight.len() >= self.settings.batches_max || state.in_flight_bytes >= state.window.bytes();
            if !full && state.cursor < held.next && self.meter.allows(traffic(lane), mono_us) {
                let part = (state.window.bytes() / 4).max(BATCH_BYTES_MIN);
                return Some(Wanted {
                    lane,
                    from: state.cursor,
                    records_max: self.settings.batch_records_max,
                    bytes_max: part.min(self.settings.batch_bytes_max).min(self.meter.batch_bytes_max()),
                });
            }
        }
        None
    }

    /// A batch through `last` is on its way, in a frame of `bytes`.
    pub fn sent(&mut self, lane: Lane, last: u64, bytes: usize, mono_us: i64) {
        self.meter.charge(traffic(lane), bytes);
        let state = &mut self.lanes[index(lane)];
        if state.in_flight.is_empty() {
            state.moved_us = mono_us;
        }
        state.in_flight.push_back(InFlight { last, bytes, sent_us: mono_us });
        state.in_flight_bytes += bytes;
        state.cursor = last + 1;
    }

    /// Whether the live picture or the status may be sent now.
    pub fn may_send_live(&mut self, mono_us: i64) -> bool {
        self.connected && self.meter.allows(Traffic::Live, mono_us)
    }

    /// It was sent.
    pub fn live_sent(&mut self, bytes: usize) {
        self.meter.charge(Traffic::Live, bytes);
    }

    /// What an authentic receipt means.
    pub fn receipt(&mut self, receipt: &Receipt, known: Known, mono_us: i64) -> Judged {
        if receipt.epoch != self.epoch {
            return Judged::OtherEpoch;
        }
        if receipt.through >= known.next {
            return Judged::Impossible;
        }
        let state = &mut self.lanes[index(receipt.lane)];
        state.overdue = false;
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
        // Without a digest the cloud was told that this number is no longer held, and here it is.
        if known.digest.is_some() && receipt.tail != known.digest {
            return Judged::Impossible;
        }
        state.receipted(receipt.through, mono_us);
        state.timeout = self.settings.timeout.max(state.timeout / 2);
        Judged::Release(receipt.through)
    }

    /// Sends a lane again from behind its last receipt: what it waited for is there.
    pub fn again(&mut self, lane: Lane, mono_us: i64) {
        self.lanes[index(lane)].restart(mono_us);
    }

    /// Starts again the lanes whose receipts are overdue.
    pub fn tick(&mut self, mono_us: i64) {
        for state in &mut self.lanes {
            if self.connected && !state.in_flight.is_empty() && mono_us - state.moved_us >= micros(state.timeout) {
                state.resends += 1;
                state.restart(mono_us);
                state.window.lost();
                state.overdue = true;
                state.timeout = (state.timeout * 2).min(self.settings.timeout_max);
            }
        }
    }

    /// Whether the cloud answers.
    #[must_use]
    pub fn answering(&self) -> Answering {
        if self.lanes.iter().any(|lane| lane.overdue) {
            Answering::No
        } else if self.is_waiting() {
            Answering::Yes
        } else {
            Answering::Idle
        }
    }

    /// Whether something is on its way that is not receipted.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.in_flight.is_empty())
    }

    /// How often a lane was started again since the start.
    #[must_use]
    pub fn resends(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.resends).sum()
    }
}

impl LaneState {
    fn new(settings: &Settings, lane: Lane) -> Self {
        Self {
            through: 0,
            cursor: 1,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            window: Window::new(lane == Lane::Summaries),
            timeout: settings.timeout,
            overdue: false,
            moved_us: 0,
            restarted_us: i64::MIN / 2,
            resends: 0,
        }
    }

    fn receipted(&mut self, through: u64, mono_us: i64) {
        self.through = through;
        self.cursor = self.cursor.max(through + 1);
        let mut newest = None;
        let mut bytes = 0;
        while self.in_flight.front().is_some_and(|batch| batch.last <= through) {
            if let Some(batch) = self.in_flight.pop_front() {
                bytes += batch.bytes;
                newest = Some(batch);
            }
        }
        self.in_flight_bytes -= bytes;
        if let Some(batch) = newest {
            self.window.receipted(bytes, mono_us - batch.sent_us);
        }
        self.moved_us = mono_us;
    }

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
mod simulation;
#[cfg(test)]
mod tests;
