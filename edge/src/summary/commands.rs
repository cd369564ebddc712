//! What people tell a machine's detector, and the records that come of it.

use gemba_shared::{
    message::Lane,
    telemetry::{Clock, Record, Timestamp},
};

use super::Machine;
use crate::{
    detect::{
        commands::NothingToAccept,
        labels::{Labelled, Standing},
    },
    reading::Now,
};

impl Machine {
    /// Learns anew what is normal; an open anomaly is closed.
    pub fn recalibrate(&mut self, now: Now, records: &mut Vec<(Lane, Record)>) {
        let at = self.window.latest().unwrap_or(now.wall);
        let mut events = Vec::new();
        self.detector.recalibrate(at, &mut events);
        let clock = self.clock(now);
        for kind in events {
            self.tell_event(kind, at, clock, records);
        }
    }

    /// What the machine shows now is normal from now on.
    ///
    /// # Errors
    /// If nothing is known that could be normal.
    pub fn accept_new_normal(&mut self, now: Now, records: &mut Vec<(Lane, Record)>) -> Result<(), NothingToAccept> {
        let at = self.window.latest().unwrap_or(now.wall);
        let mut events = Vec::new();
        self.detector.accept_new_normal(at, &mut events)?;
        let clock = self.clock(now);
        for kind in events {
            self.tell_event(kind, at, clock, records);
        }
        Ok(())
    }

    /// Takes what a person says of the anomaly that opened at this time; `None` if it is not remembered. `put_right` makes a time by a clock
    /// the one under which it was told of.
    pub fn label(
        &mut self,
        opened: Timestamp,
        real: bool,
        put_right: impl Fn(Clock, Timestamp) -> Timestamp,
    ) -> Option<Labelled> {
        self.detector.label(opened, real, put_right)
    }

    /// How often its detector was right, as people say, and how wide its limits are.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.detector.standing()
    }

    #[must_use]
    pub fn is_out_of_service(&self) -> bool {
        self.detector.is_out_of_service()
    }

    /// Takes the machine out of judgement, or back in.
    pub fn set_out_of_service(&mut self, out: bool) {
        self.detector.set_out_of_service(out);
    }
}
