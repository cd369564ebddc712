//! Opening an outbox: what is whole is taken as it is; what is damaged is salvaged, and its holes are known.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    path::Path,
};

use gemba_shared::message::Epoch;

use super::{
    LaneState, Opened, Outbox, OutboxCounters, OutboxError, OutboxSettings, Row, Span, State, Tail, begin_spans, index,
    parse_record_key, parse_state_key,
};
use crate::generations::{Damage, Found, Generation, Generations};

/// Numbers left out after the newest generation lost rows: those that its `tail` file may not have known of when the power
/// failed. They must not be used twice.
const SKIP_BEHIND: u64 = 4_096;
/// The same, where not even the `tail` file could be read.
const SKIP_UNKNOWN: u64 = 65_536;

impl Outbox {
    /// Opens the outbox in `dir`, or makes a new one there.
    ///
    /// # Errors
    /// If another process has it open, or the disk fails. Damage is no error: it is mended and told in [`Opened`].
    pub fn open(dir: &Path, settings: OutboxSettings) -> Result<(Self, Opened), OutboxError> {
        let (mut generations, mut damage) = Generations::open(&dir.join("generations"), settings.generations)?;
        let unreadable: Vec<u64> =
            generations.closed().iter().filter(|(_, g)| g.tail.is_none()).map(|(o, _)| *o).collect();
        for ordinal in unreadable {
            tracing::error!(ordinal, "nothing says what a generation of the outbox holds: it is set aside");
            damage.quarantined.push((generations.quarantine(ordinal)?, Generation { tail: None, bytes: 0 }));
        }
        let mut spans = BTreeMap::new();
        let mut last: Option<Tail> = None;
        let mut unknown = false;
        let mut saw = |ordinal: Option<u64>, tail: Option<&[u8]>| {
            let Some(tail) = tail.and_then(|tail| postcard::from_bytes::<Tail>(tail).ok()) else { return false };
            if let Some(ordinal) = ordinal {
                spans.insert(ordinal, tail.spans);
            }
            let highest = last.get_or_insert_with(|| tail.clone());
            highest.epoch = tail.epoch;
            for (highest, lane) in highest.lanes.iter_mut().zip(tail.lanes) {
                highest.next = highest.next.max(lane.next);
                highest.oldest = highest.oldest.max(lane.oldest);
            }
            true
        };
        for (&ordinal, generation) in generations.closed() {
            saw(Some(ordinal), generation.tail.as_deref());
        }
        for (_, generation) in &damage.quarantined {
            unknown |= !saw(None, generation.tail.as_deref());
        }
        if let Some((ordinal, tail)) = generations.newest() {
            unknown |= !saw(Some(ordinal), Some(tail));
        }
        if let Some(tail) = &damage.newest_behind {
            unknown |= !saw(None, Some(tail));
        }

        let is_new = last.is_none();
        let (epoch, mut lanes) = if let Some(tail) = last {
            (tail.epoch, tail.lanes)
        } else {
            let epoch = Epoch(getrandom::u64().map_err(OutboxError::Random)?);
            (epoch, [LaneState { oldest: 1, next: 1 }; 2])
        };
        if !is_new && !damage.is_none() {
            let skip = if unknown { SKIP_UNKNOWN } else { SKIP_BEHIND };
            for lane in &mut lanes {
                lane.next += skip;
            }
        }
        let mut this = Self {
            settings,
            generations,
            dead_letters: dir.join("dead-letters"),
            epoch,
            lanes,
            spans,
            carried: BTreeSet::new(),
            oldest_at: None,
            counters: OutboxCounters::default(),
        };
        let mut opened = Opened { is_new, ..Opened::default() };
        opened.quarantined.extend(damage.quarantined.iter().map(|(path, _)| path.clone()));
        this.take_up_newest(&damage, &mut opened)?;
        this.delete_released()?;
        Ok((this, opened))
    }

    fn take_up_newest(&mut self, damage: &Damage, opened: &mut Opened) -> Result<(), OutboxError> {
        let Some((newest, _)) = self.generations.newest() else {
            // The states of the newest are gone; those of the one before it are the best there is.
            let previous = self.generations.closed().keys().next_back().copied();
            let rows = previous.map(|ordinal| self.read_whole(ordinal)).transpose()?.unwrap_or_default();
            let rows: Vec<Row> = rows.intact.into_iter().filter(|(key, _)| !key.starts_with(b"r")).collect();
            self.take_states(&rows, opened);
            return self.begin_generation(&rows, begin_spans(&self.lanes));
        };
        let mut rows = self.read_whole(newest)?;
        self.take_states(&rows.intact, opened);
        let missing = rows.missing(self.spans.get(&newest).copied().unwrap_or_default());
        if missing == 0 && rows.damaged == 0 && damage.newest_behind.is_none() {
            return Ok(());
        }
        opened.lost_records = missing;
        self.counters.damaged += missing;
        tracing::error!(lost = missing, rows = rows.damaged, "the outbox is damaged: what is left of it is salvaged");
        // Salvaged records keep their numbers, so they are carried on like those of a generation that was given up.
        for (key, _) in &mut rows.intact {
            if let Some(at) = parse_record_key(key) {
                if key.starts_with(b"r") {
                    key[0] = b'k';
                }
                self.carried.insert(at);
            }
        }
        self.begin_generation(&rows.intact, begin_spans(&self.lanes))?;
        self.spans.remove(&newest);
        opened.quarantined.push(self.generations.quarantine(newest)?);
        Ok(())
    }

    fn take_states(&mut self, rows: &[Row], opened: &mut Opened) {
        for (key, value) in rows {
            if let Some((machine, part)) = parse_state_key(key) {
                opened.states.push(State { machine, part, bytes: value.clone() });
            } else if key.starts_with(b"k")
                && let Some((lane, number)) = parse_record_key(key)
                && number >= self.oldest(lane)
            {
                self.carried.insert((lane, number));
            }
        }
    }

    fn read_whole(&mut self, ordinal: u64) -> Result<Rows, OutboxError> {
        let mut rows = Rows::default();
        let spans = self.spans.get(&ordinal).copied().unwrap_or_default();
        self.generations.scan(ordinal, b"k", |key, value| {
            match value {
                // Rows above the tail are of an append that never returned.
                Found::Intact(value) => {
                    let at = parse_record_key(key).filter(|_| key.starts_with(b"r"));
                    if at.is_none_or(|(lane, number)| spans[index(lane)].numbers().contains(&number)) {
                        rows.intact.push((key.to_vec(), value));
                    }
                }
                Found::Damaged => rows.damaged += 1,
            }
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }
}

#[derive(Default)]
struct Rows {
    intact: Vec<Row>,
    damaged: u64,
}

impl Rows {
    /// How many records of the spans are not there.
    fn missing(&self, spans: [Span; 2]) -> u64 {
        let promised: u64 = spans.iter().map(|span| span.next - span.first).sum();
        promised.saturating_sub(self.intact.iter().filter(|(key, _)| key.starts_with(b"r")).count() as u64)
    }
}
