//! From a device's message to readings.
//!
//! A topic that is known costs one look-up and no allocation. What cannot be read is counted by reason and
//! sampled into the log ([`Reject`]); it touches nothing else: a machine or sensor is only taken in with its first
//! good reading. The caller acknowledges rejected messages too: they would only come again.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use gemba_mqtt::delivery::Publish;
use gemba_shared::{
    ids::{MachineId, SensorId},
    telemetry::{Clock, Timestamp},
};

use crate::{
    config::{Config, Format, Limits, Source},
    reading::{MachineIx, Now, Reading, Registry, RegistryFull, SensorIx},
};

mod payload;
mod reject;

pub use reject::{Reject, Rejects};

/// Known topics; when there are more (a pattern with `+`), all are learnt anew.
const TOPICS_MAX: usize = 65_536;

/// Reads messages by the configured sources.
#[derive(Debug)]
pub struct Decoder {
    sources: Vec<Source>,
    limits: Limits,
    /// Messages that a broker kept from before are of unknown age.
    refuse_retained: bool,
    topics: HashMap<Bytes, Topic>,
    /// Sensors of payloads with several, by machine.
    sensors: HashMap<MachineIx, HashMap<Box<str>, SensorIx>>,
    values: Vec<(String, f64)>,
    log: reject::Log,
}

/// What a known topic is of.
#[derive(Debug, Clone, Copy)]
struct Topic {
    source: usize,
    machine: MachineIx,
    /// `None` where the payload names the sensors.
    sensor: Option<SensorIx>,
}

/// What a new topic would be of.
struct NewTopic {
    source: usize,
    machine: MachineId,
    sensor: Option<SensorId>,
}

enum Route {
    Known(Topic),
    New(NewTopic),
}

impl Route {
    fn source(&self) -> usize {
        match self {
            Self::Known(topic) => topic.source,
            Self::New(topic) => topic.source,
        }
    }
}

impl Decoder {
    /// `refuse_retained`: the messages come from a broker that may have kept them.
    #[must_use]
    pub fn new(config: &Config, refuse_retained: bool) -> Self {
        Self {
            sources: config.sources.clone(),
            limits: config.limits.clone(),
            refuse_retained,
            topics: HashMap::new(),
            sensors: HashMap::new(),
            values: Vec::new(),
            log: reject::Log::default(),
        }
    }

    /// Reads by other sources and limits from now on; counters and what the registry knows stay.
    pub fn reconfigure(&mut self, config: &Config) {
        self.sources.clone_from(&config.sources);
        self.limits.clone_from(&config.limits);
        self.topics.clear();
    }

    /// What was rejected since the start, by reason.
    #[must_use]
    pub fn rejects(&self) -> Arc<Rejects> {
        Arc::clone(&self.log.rejects)
    }

    /// Appends the readings of a message to `out`. Of a message with several values the good ones are taken even
    /// where others are rejected.
    ///
    /// # Errors
    /// With the (first) reason why something was rejected; it has been counted.
    pub fn decode(
        &mut self,
        publish: &Publish,
        publisher: &str,
        now: Now,
        registry: &mut Registry,
        out: &mut Vec<Reading>,
    ) -> Result<(), Reject> {
        let result = self.read(publish, now, registry, out);
        if let Err(reason) = result {
            self.log.note(reason, &publish.topic, publisher, now.mono_us);
        }
        result
    }

    fn read(
        &mut self,
        publish: &Publish,
        now: Now,
        registry: &mut Registry,
        out: &mut Vec<Reading>,
    ) -> Result<(), Reject> {
        if publish.payload.len() > self.limits.payload_bytes_max {
            return Err(Reject::TooLarge);
        }
        if publish.retain && self.refuse_retained {
            return Err(Reject::Retained);
        }
        let route = match self.topics.get(&publish.topic) {
            Some(topic) => Route::Known(*topic),
            None => Route::New(self.resolve(&publish.topic)?),
        };
        let json = match (&self.sources[route.source()].format, publish.payload.first()) {
            (Format::Json(json), _) | (Format::Auto(json), Some(b'{' | b'[')) => Some(json),
            (Format::Number | Format::Auto(_), _) => None,
        };
        let Some(json) = json else {
            let value = payload::number(&publish.payload)?;
            let topic = self.take_in(route, &publish.topic, registry)?;
            let sensor = topic.sensor.ok_or(Reject::NoValue)?;
            out.push(Reading { machine: topic.machine, sensor, at: now.arrival(), value });
            return Ok(());
        };
        self.values.clear();
        let document = payload::Document::parse(&publish.payload)?;
        let at = match document.time(json)? {
            Some(at) => judge_time(at, now, &self.limits)?,
            None => now.arrival(),
        };
        if json.values.is_none() {
            let value = document.value(json)?;
            let topic = self.take_in(route, &publish.topic, registry)?;
            let sensor = topic.sensor.ok_or(Reject::NoValue)?;
            out.push(Reading { machine: topic.machine, sensor, at, value });
            return Ok(());
        }
        let rejected = document.values(json, &mut self.values)?;
        if self.values.is_empty() {
            return Err(rejected.unwrap_or(Reject::NoValue));
        }
        let topic = self.take_in(route, &publish.topic, registry)?;
        let full = self.take_several(topic.machine, at, registry, out);
        rejected.or(full).map_or(Ok(()), Err)
    }

    /// Whose topic this is; nothing is taken in yet.
    fn resolve(&self, topic: &Bytes) -> Result<NewTopic, Reject> {
        let topic = std::str::from_utf8(topic).map_err(|_| Reject::TopicUnmatched)?;
        let (source, captures) = self
            .sources
            .iter()
            .enumerate()
            .find_map(|(i, source)| Some((i, source.topic.captures(topic)?)))
            .ok_or(Reject::TopicUnmatched)?;
        let names = &self.sources[source].names;
        let machine = match (&names.machine, captures.machine) {
            (Some(machine), _) => machine.clone(),
            (None, Some(name)) => MachineId::new(name).map_err(|_| Reject::MachineId)?,
            (None, None) => return Err(Reject::MachineId),
        };
        let sensor = match (&names.sensor, captures.sensor) {
            (Some(sensor), _) => Some(sensor.clone()),
            (None, Some(name)) => Some(SensorId::new(name).map_err(|_| Reject::SensorId)?),
            (None, None) => None,
        };
        Ok(NewTopic { source, machine, sensor })
    }

    fn take_in(&mut self, route: Route, topic: &Bytes, registry: &mut Registry) -> Result<Topic, Reject> {
        let new = match route {
            Route::Known(known) => return Ok(known),
            Route::New(new) => new,
        };
        let machine = registry.machine(&new.machine).map_err(full)?;
        let sensor = new.sensor.map(|sensor| registry.sensor(machine, &sensor)).transpose().map_err(full)?;
        let known = Topic { source: new.source, machine, sensor };
        if self.topics.len() >= TOPICS_MAX {
            self.topics.clear();
        }
        // A copy: a slice of the message would keep the whole network buffer alive.
        self.topics.insert(Bytes::copy_from_slice(topic), known);
        Ok(known)
    }

    fn take_several(
        &mut self,
        machine: MachineIx,
        at: Timestamp,
        registry: &mut Registry,
        out: &mut Vec<Reading>,
    ) -> Option<Reject> {
        let known = self.sensors.entry(machine).or_default();
        let mut rejected = None;
        for (name, value) in self.values.drain(..) {
            let sensor = if let Some(sensor) = known.get(name.as_str()) {
                *sensor
            } else {
                let new = SensorId::new(&name).map_err(|_| Reject::SensorId);
                match new.and_then(|sensor| registry.sensor(machine, &sensor).map_err(full)) {
                    Ok(sensor) => {
                        known.insert(name.into(), sensor);
                        sensor
                    }
                    Err(reason) => {
                        rejected.get_or_insert(reason);
                        continue;
                    }
                }
            };
            out.push(Reading { machine, sensor, at, value });
        }
        rejected
    }
}

fn full(full: RegistryFull) -> Reject {
    match full {
        RegistryFull::Machines(_) => Reject::MachinesFull,
        RegistryFull::Sensors(_) => Reject::SensorsFull,
    }
}

/// A time is only judged against a clock that is known to be right.
fn judge_time(at: Timestamp, now: Now, limits: &Limits) -> Result<Timestamp, Reject> {
    let us = |duration: std::time::Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    let ahead_us = at.us_since(now.wall);
    match now.clock {
        Clock::Trusted if ahead_us > us(limits.skew_future) => Err(Reject::InFuture),
        Clock::Trusted if ahead_us < -us(limits.past_max) => Err(Reject::TooOld),
        _ => Ok(at),
    }
}

#[cfg(test)]
mod tests;
