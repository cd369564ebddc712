//! What is in flight on one connection, by packet identifier. Pure.

use std::{collections::VecDeque, time::Instant};

use super::feed::Message;

/// Messages that wait for their PUBACK, oldest first. Identifiers count from 1 to 65,535 and start again.
#[derive(Debug)]
pub struct InFlight {
    capacity: usize,
    next_id: u16,
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: u16,
    message: Message,
    sent: Instant,
    answered: bool,
}

impl InFlight {
    /// At most `capacity` messages, which is below 65,535.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity, next_id: 1, entries: VecDeque::with_capacity(capacity.min(1_024)) }
    }

    /// Whether the next message must wait.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.answered).count()
    }

    /// Takes a message in, and gives its identifier.
    pub fn push(&mut self, message: Message, sent: Instant) -> u16 {
        let id = self.next_id;
        self.next_id = id.checked_add(1).unwrap_or(1);
        self.entries.push_back(Entry { id, message, sent, answered: false });
        id
    }

    /// Marks a message, and hands it to `settled` if it was waiting. False if the identifier is of no message in flight.
    /// (MQTT wants PUBACKs in order; brokers that answer in another order are borne.)
    pub fn acknowledge(&mut self, id: u16, mut settled: impl FnMut(Message, Instant)) -> bool {
        let Some(front) = self.entries.front() else { return false };
        // Identifiers are consecutive in a ring of 65,535: the distance from the front is the index.
        let distance = (i32::from(id) - i32::from(front.id)).rem_euclid(i32::from(u16::MAX));
        let Some(entry) = usize::try_from(distance).ok().and_then(|index| self.entries.get_mut(index)) else {
            return false;
        };
        if entry.id != id {
            return false;
        }
        // A message that was resent may be answered twice.
        if !entry.answered {
            entry.answered = true;
            settled(entry.message, entry.sent);
        }
        while self.entries.front().is_some_and(|entry| entry.answered) {
            self.entries.pop_front();
        }
        true
    }

    /// What must be sent again on a new connection, in order.
    pub fn unanswered(&self) -> impl Iterator<Item = (u16, Message)> {
        self.entries.iter().filter(|entry| !entry.answered).map(|entry| (entry.id, entry.message))
    }
}

#[cfg(test)]
mod tests {
    use gemba_shared::telemetry::Timestamp;

    use super::*;

    fn message(value: u32) -> Message {
        Message { sensor: 0, at: Timestamp(0), value: f64::from(value) }
    }

    #[test]
    fn identifiers_go_round_and_never_are_zero() {
        let mut window = InFlight::new(10);
        let mut settled = 0_u32;
        for round in 0..200_000_u32 {
            let id = window.push(message(round), Instant::now());
            assert_ne!(id, 0);
            if round >= 5 {
                let oldest = window.unanswered().next().unwrap().0;
                assert!(window.acknowledge(oldest, |message, _| {
                    assert_eq!(message.value as u32, settled);
                    settled += 1;
                }));
            }
        }
        assert_eq!(window.len(), 5);
    }

    #[test]
    fn each_message_settles_once_in_any_order() {
        let mut window = InFlight::new(4);
        let ids: Vec<u16> = (0..4).map(|value| window.push(message(value), Instant::now())).collect();
        assert!(window.is_full());
        let mut settled = Vec::new();
        let mut acknowledge =
            |window: &mut InFlight, id| window.acknowledge(id, |message, _| settled.push(message.value));
        assert!(acknowledge(&mut window, ids[2]));
        assert!(acknowledge(&mut window, ids[2]), "a second answer is borne");
        assert!(!acknowledge(&mut window, 77), "an answer to nothing is not");
        assert!(acknowledge(&mut window, ids[0]));
        assert_eq!(window.unanswered().map(|(id, _)| id).collect::<Vec<_>>(), [ids[1], ids[3]]);
        assert!(acknowledge(&mut window, ids[1]));
        assert!(acknowledge(&mut window, ids[3]));
        assert!(window.is_empty());
        assert_eq!(settled, [2.0, 0.0, 1.0, 3.0]);
    }
}
