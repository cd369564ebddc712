//! What people tell a detector: to learn anew, what is normal now, which anomalies were real, and when not to judge.

use gemba_shared::telemetry::{Clock, EventKind, Timestamp};

use super::{
    DetectSettings, Detector,
    labels::{Labelled, Standing},
    life::Life,
};

/// Why there is no new normal to accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NothingToAccept {
    #[error("the machine is still being calibrated: what is normal is not known yet")]
    NotCalibrated,
    #[error("the machine is not judged at present: it is off, idle, out of service, or has just begun to run")]
    NotJudged,
    #[error("nothing of the machine was seen since the gateway started; try again when it sends data")]
    NotSeen,
}

impl Detector {
    /// Learns anew what is normal. An open anomaly is closed.
    pub fn recalibrate(&mut self, at: Timestamp, events: &mut Vec<EventKind>) {
        self.close(events);
        self.core.faults.close(events);
        tracing::info!(at = at.as_millis(), "a machine is calibrated anew");
        self.start_calibration();
    }

    /// Judges by other settings from now on. Where another model is to judge, or the steps are others, what was learnt is of no use:
    /// calibration begins anew, and an open anomaly is closed.
    pub fn reconfigure(&mut self, settings: DetectSettings, step_us: i64, at: Timestamp, events: &mut Vec<EventKind>) {
        let name = |settings: &DetectSettings| settings.model.as_ref().map(ToString::to_string);
        if step_us != self.step_us || name(&settings) != name(&self.settings) {
            self.recalibrate(at, events);
            self.history.clear();
        }
        (self.settings, self.step_us) = (settings, step_us);
    }

    /// What the machine shows now is normal from now on: an open anomaly is closed, and the levels stand where the sensors are.
    ///
    /// # Errors
    /// If nothing is known that could be normal.
    pub fn accept_new_normal(&mut self, at: Timestamp, events: &mut Vec<EventKind>) -> Result<(), NothingToAccept> {
        let learnt = self.learnt.as_ref().ok_or(NothingToAccept::NotCalibrated)?;
        self.core.score.ok_or(NothingToAccept::NotJudged)?;
        let values = self.history.last().ok_or(NothingToAccept::NotSeen)?;
        tracing::info!(at = at.as_millis(), "what a machine shows is its new normal");
        self.core.judge.accept(values, learnt, self.settings.model.is_some(), &self.core.faults);
        self.close(events);
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
        let open = self.core.alarm.opened().map(|at| put_right(self.timeline, at));
        let labelled = self.labels.label(opened, real, put_right)?;
        self.labels_changed = true;
        self.widen();
        Some(Labelled { is_open: open == Some(opened), ..labelled })
    }

    /// How often it was right, as people say, and how wide its limits are.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.labels.standing()
    }

    /// Judges by limits as wide as the labels ask for. What was compared with the limits before is compared with these.
    fn widen(&mut self) {
        let (before, width) = (self.core.judge.width(), self.labels.width());
        if width.to_bits() == before.to_bits() {
            return;
        }
        self.core.judge.set_width(width);
        let by = before / width;
        self.core.alarm.rescale(by);
        for score in [&mut self.core.score, &mut self.core.score_max, &mut self.core.health_score] {
            *score = score.map(|score| score * by);
        }
        // Health moved for another reason than wear.
        self.core.life = Life::default();
    }

    /// Takes the machine out of judgement, or back in.
    pub fn set_out_of_service(&mut self, out: bool) {
        self.core.out_of_service = out;
    }

    #[must_use]
    pub fn is_out_of_service(&self) -> bool {
        self.core.out_of_service
    }
}
