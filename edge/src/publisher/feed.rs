//! What a device publishes: its topics, and how a reading becomes a payload. And the ledger of what arrived.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use bytes::{BufMut, BytesMut};
use gemba_shared::{
    ids::{MachineId, SensorId},
    telemetry::Timestamp,
};
use tokio::{sync::mpsc, task::JoinHandle};

/// Batches of acknowledged messages on their way to the ledger.
const LEDGER_BATCHES: usize = 64;

/// A ledger's two ends: where batches of acknowledged messages go, and the thread that writes them.
pub type Ledger = (mpsc::Sender<Vec<Message>>, JoinHandle<anyhow::Result<()>>);

/// A payload's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The value as text, without a time.
    Number,
    /// `{"time":"2026-01-31T12:00:00.000000Z","value":1.5}`
    Json,
}

/// One reading of a feed's sensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Message {
    /// The sensor's place in the feed.
    pub sensor: u32,
    pub at: Timestamp,
    pub value: f64,
}

#[derive(Debug)]
struct Source {
    machine: MachineId,
    sensor: SensorId,
    topic: Vec<u8>,
}

/// The sensors that a plant publishes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Feed {
    format: Format,
    sources: Arc<Vec<Source>>,
}

impl Feed {
    /// `topic` is a pattern with `{machine}` and `{sensor}` in it.
    ///
    /// # Errors
    /// If the pattern does not tell sensors apart, or could be no topic.
    pub fn new(
        topic: &str,
        format: Format,
        sensors: impl IntoIterator<Item = (MachineId, SensorId)>,
    ) -> Result<Self, String> {
        if !topic.contains("{machine}") || !topic.contains("{sensor}") {
            return Err(format!(
                "topic {topic:?}: it must hold {{machine}} and {{sensor}}, as plant/{{machine}}/{{sensor}}"
            ));
        }
        if topic.contains(['+', '#', '\0']) || topic.starts_with('$') || topic.len() > 1_000 {
            return Err(format!(
                "topic {topic:?}: wildcards, a leading '$' and more than 1,000 bytes are not possible"
            ));
        }
        let sources = sensors
            .into_iter()
            .map(|(machine, sensor)| {
                let topic = topic.replace("{machine}", machine.as_str()).replace("{sensor}", sensor.as_str());
                Source { machine, sensor, topic: topic.into_bytes() }
            })
            .collect();
        Ok(Self { format, sources: Arc::new(sources) })
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Appends the PUBLISH packet: with an identifier it wants an answer.
    ///
    /// # Panics
    /// If the message's sensor is not of this feed.
    pub fn write(&self, message: &Message, id: Option<u16>, dup: bool, out: &mut BytesMut) {
        let topic = &self.sources[message.sensor as usize].topic;
        let mut payload = Payload::default();
        payload.put(self.format, message);
        let payload = payload.as_bytes();
        let first = 0x30 | u8::from(dup) << 3 | u8::from(id.is_some()) << 1;
        let mut length = 2 + topic.len() + usize::from(id.is_some()) * 2 + payload.len();
        out.reserve(5 + length);
        out.put_u8(first);
        while length > 0x7f {
            out.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        out.put_u8(length as u8);
        out.put_u16(topic.len() as u16);
        out.put_slice(topic);
        if let Some(id) = id {
            out.put_u16(id);
        }
        out.put_slice(payload);
    }

    /// The ledger's line of a message: `machine,sensor,time_us,value`.
    fn write_line(&self, message: &Message, out: &mut impl io::Write) -> io::Result<()> {
        let source = &self.sources[message.sensor as usize];
        writeln!(out, "{},{},{},{}", source.machine, source.sensor, message.at.0, message.value)
    }
}

/// A payload on the stack: this is the load generator's hot path.
struct Payload {
    bytes: [u8; 512],
    length: usize,
}

impl Default for Payload {
    fn default() -> Self {
        Self { bytes: [0; 512], length: 0 }
    }
}

impl Payload {
    fn put(&mut self, format: Format, message: &Message) {
        let mut room = &mut self.bytes[..];
        let capacity = room.len();
        let value = message.value;
        let written = match format {
            Format::Number => write!(room, "{value}"),
            // Outside the years that a calendar knows, the receiver will say so.
            Format::Json => match jiff::Timestamp::from_microsecond(message.at.0) {
                Ok(time) => write!(room, "{{\"time\":\"{time:.6}\",\"value\":{value}}}"),
                Err(_) => write!(room, "{{\"time\":{},\"value\":{value}}}", message.at.0),
            },
        };
        // The longest f64 has 327 characters.
        debug_assert!(written.is_ok(), "a time and a value fit");
        self.length = capacity - room.len();
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Writes what was acknowledged to a file, on a thread of its own. Ends when all senders are gone.
///
/// # Errors
/// If the file cannot be made.
pub fn ledger(path: &Path, feed: Feed) -> anyhow::Result<Ledger> {
    let name = path.display().to_string();
    let file = File::create(path).with_context(|| format!("{name}: the ledger cannot be made"))?;
    let (sender, mut batches) = mpsc::channel::<Vec<Message>>(LEDGER_BATCHES);
    let writer = tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::new(file);
        let mut write = || {
            writeln!(out, "machine,sensor,time_us,value")?;
            while let Some(batch) = batches.blocking_recv() {
                for message in &batch {
                    feed.write_line(message, &mut out)?;
                }
                if batches.is_empty() {
                    out.flush()?;
                }
            }
            out.flush()
        };
        write().with_context(|| format!("{name}: the ledger cannot be written"))
    });
    Ok((sender, writer))
}

#[cfg(test)]
mod tests {
    use gemba_shared::gate::packet::{self, Packet, QoS};

    use super::*;

    fn feed(format: Format) -> Feed {
        let name = (MachineId::new("pump-1").unwrap(), SensorId::new("flow").unwrap());
        Feed::new("plant/{machine}/{sensor}", format, [name]).unwrap()
    }

    #[track_caller]
    fn check(format: Format, value: f64, expected: &str) {
        let message = Message { sensor: 0, at: Timestamp(1_767_268_800_123_456), value };
        for (id, dup) in [(Some(258), false), (Some(1), true), (None, false)] {
            let mut bytes = BytesMut::new();
            feed(format).write(&message, id, dup, &mut bytes);
            let Ok(Some(Packet::Publish(publish))) = packet::parse(&mut bytes, 1_000) else { panic!("no packet") };
            assert_eq!(publish.payload, expected.as_bytes());
            assert_eq!(publish.topic, &b"plant/pump-1/flow"[..]);
            assert_eq!((publish.id, publish.dup), (id.unwrap_or(0), dup));
            assert_eq!(publish.qos, if id.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce });
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn readings_become_payloads() {
        check(Format::Number, 48.25, "48.25");
        check(Format::Number, -3.0, "-3");
        check(Format::Json, 48.25, r#"{"time":"2026-01-01T12:00:00.123456Z","value":48.25}"#);
        check(Format::Number, f64::MAX, &f64::MAX.to_string());
        check(Format::Number, -f64::MIN_POSITIVE, &(-f64::MIN_POSITIVE).to_string());
    }

    #[test]
    fn a_pattern_must_tell_sensors_apart() {
        for bad in ["plant/{machine}", "x/{sensor}", "+/{machine}/{sensor}", "$SYS/{machine}/{sensor}", ""] {
            assert!(Feed::new(bad, Format::Number, []).unwrap_err().starts_with("topic "), "{bad}");
        }
    }
}
