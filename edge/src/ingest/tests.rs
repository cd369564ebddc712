//! Payloads and topics, good and bad.

use std::path::Path;

use super::*;

const NOW: Now = Now { wall: Timestamp(1_700_000_000_000_000), mono_us: 5, clock: Clock::Trusted };

struct Bench {
    decoder: Decoder,
    registry: Registry,
    out: Vec<Reading>,
}

fn bench(config: &str) -> Bench {
    let config = Config::parse(config, Path::new("/")).unwrap_or_else(|faults| panic!("{faults:?}"));
    let registry = Registry::new(config.limits.machines_max, config.limits.sensors_max);
    Bench { decoder: Decoder::new(&config, false), registry, out: Vec::new() }
}

fn publish(topic: &str, payload: &[u8]) -> Publish {
    let topic = Bytes::copy_from_slice(topic.as_bytes());
    Publish { topic, payload: Bytes::copy_from_slice(payload), retain: false, dup: false }
}

impl Bench {
    fn decode(&mut self, now: Now, topic: &str, payload: &[u8]) -> Result<Vec<String>, Reject> {
        self.out.clear();
        let result = self.decoder.decode(&publish(topic, payload), "test", now, &mut self.registry, &mut self.out);
        result?;
        Ok(self.told())
    }

    fn told(&self) -> Vec<String> {
        let name = |r: &Reading| {
            let sensor = &self.registry.sensors(r.machine)[r.sensor.0 as usize];
            let (machine, value) = (self.registry.machine_id(r.machine), r.value);
            format!("{machine}/{sensor}={value}@{}", r.at.us_since(NOW.wall))
        };
        self.out.iter().map(name).collect()
    }
}

#[test]
fn one_value_in_each_form() {
    let mut b = bench("");
    let mut check = |payload: &str, expected: &str| {
        assert_eq!(b.decode(NOW, "plant/p1/t", payload.as_bytes()), Ok(vec![expected.to_owned()]), "{payload}");
    };
    check("1.5", "p1/t=1.5@0");
    check(" -2e3\n", "p1/t=-2000@0");
    check("{\"value\": 3}", "p1/t=3@0");
    check("{\"value\": 3, \"time\": null}", "p1/t=3@0");
    check("{\"value\": 3, \"time\": 1699999999500}", "p1/t=3@-500000");
    check("{\"value\": 3, \"time\": \"2023-11-14T22:13:21Z\"}", "p1/t=3@1000000");
    check("{\"value\": 3, \"time\": \"2023-11-14T23:13:21.000001+01:00\"}", "p1/t=3@1000001");
}

#[test]
fn time_units() {
    for (format, time) in
        [("s", "1700000001"), ("s", "1700000001.0"), ("ms", "1700000001000"), ("us", "1700000001000000")]
    {
        let mut b = bench(&format!("[[sources]]\ntopic = \"{{machine}}/{{sensor}}\"\ntime_format = \"{format}\"\n"));
        let payload = format!("{{\"value\": 1, \"time\": {time}}}");
        assert_eq!(b.decode(NOW, "m/s", payload.as_bytes()), Ok(vec!["m/s=1@1000000".to_owned()]), "{format} {time}");
    }
}

#[test]
fn several_values_of_one_machine() {
    let mut b = bench("[[sources]]\ntopic = \"plc/{machine}\"\nvalues = \"/data\"\ntime = \"/ts\"\n");
    let good = b.decode(NOW, "plc/m", br#"{"ts": 1700000000001, "data": {"a": 1, "b": 2.5}}"#);
    assert_eq!(good, Ok(vec!["m/a=1@1000".to_owned(), "m/b=2.5@1000".to_owned()]));
    // The good ones are taken, and the bad ones are counted.
    let mixed = b.decode(NOW, "plc/m", br#"{"data": {"a": "x", "b": 3, "c/d": 4}}"#);
    assert_eq!(mixed, Err(Reject::NotANumber));
    assert_eq!(b.told(), ["m/b=3@0"]);
    assert_eq!(b.decode(NOW, "plc/m", br#"{"data": 5}"#), Err(Reject::NoValue));
    assert_eq!(b.decode(NOW, "plc/m", b"5"), Err(Reject::NoValue));

    let mut flat = bench("[[sources]]\ntopic = \"plc/{machine}\"\nvalues = \"\"\ntime = \"/ts\"\n");
    assert_eq!(flat.decode(NOW, "plc/m", br#"{"ts": 1700000000001, "a": 1}"#), Ok(vec!["m/a=1@1000".to_owned()]));
}

#[test]
fn what_is_rejected_and_why() {
    let mut b = bench(
        "[[sources]]\ntopic = \"plant/{machine}/{sensor}\"\n[[sources]]\ntopic = \"json/{machine}/{sensor}\"\nformat = \"json\"\n[limits]\npayload_bytes_max = \"1KiB\"\nmachines_max = 2\nsensors_max = 2\n",
    );
    b.decode(NOW, "plant/p1/t", b"1").unwrap();
    let long = "m".repeat(500);
    let table: &[(&str, &[u8], Reject)] = &[
        ("other/p1/t", b"1", Reject::TopicUnmatched),
        ("plant/p1/t/x", b"1", Reject::TopicUnmatched),
        (&format!("plant/{long}/t"), b"1", Reject::MachineId),
        ("plant/.p/t", b"1", Reject::MachineId),
        ("plant/p1/a b", b"1", Reject::SensorId),
        ("plant/p1/", b"1", Reject::SensorId),
        ("plant/p1/t", b"", Reject::NoValue),
        ("plant/p1/t", b"abc", Reject::NotANumber),
        ("plant/p1/t", b"NaN", Reject::NotFinite),
        ("plant/p1/t", b"-inf", Reject::NotFinite),
        ("plant/p1/t", b"1e999", Reject::NotFinite),
        ("plant/p1/t", b"1e300", Reject::NotFinite),
        ("plant/p1/t", b"\xff\xfe", Reject::NotUtf8),
        ("plant/p1/t", b"{\"value\": ", Reject::NotJson),
        ("json/p1/t", b"what?", Reject::NotJson),
        ("json/p1/t", b"{\"value\": NaN}", Reject::NotJson),
        ("plant/p1/t", b"{\"val\": 1}", Reject::NoValue),
        ("plant/p1/t", b"{\"value\": \"1\"}", Reject::NotANumber),
        ("plant/p1/t", b"{\"value\": 1, \"time\": \"yesterday\"}", Reject::TimeUnreadable),
        ("plant/p1/t", b"{\"value\": 1, \"time\": 1e300}", Reject::TimeUnreadable),
        ("plant/p1/t", b"{\"value\": 1, \"time\": \"1970-01-01T00:00:00Z\"}", Reject::TooOld),
        ("plant/p1/t", b"{\"value\": 1, \"time\": \"2100-01-01T00:00:00Z\"}", Reject::InFuture),
        ("plant/p1/t", &[b'1'; 2_000], Reject::TooLarge),
    ];
    for (topic, payload, reason) in table {
        let before = b.decoder.rejects().count(*reason);
        assert_eq!(b.decode(NOW, topic, payload), Err(*reason), "{topic} {}", String::from_utf8_lossy(payload));
        assert!(b.out.is_empty());
        assert_eq!(b.decoder.rejects().count(*reason), before + 1);
    }
    assert_eq!((b.registry.len(), b.registry.sensors(MachineIx(0)).len()), (1, 1), "nothing was taken in with them");
    b.decode(NOW, "plant/p1/u", b"1").unwrap();
    assert_eq!(b.decode(NOW, "plant/p1/v", b"1"), Err(Reject::SensorsFull));
    b.decode(NOW, "plant/p2/t", b"1").unwrap();
    assert_eq!(b.decode(NOW, "plant/p3/t", b"1"), Err(Reject::MachinesFull));
}

#[test]
fn a_clock_that_is_not_trusted_judges_no_time() {
    let mut b = bench("");
    let unsure = Now { clock: Clock::SinceBoot { boot: 1 }, ..NOW };
    assert!(b.decode(unsure, "plant/p1/t", b"{\"value\": 1, \"time\": \"2100-01-01T00:00:00Z\"}").is_ok());
}

#[test]
fn what_a_broker_kept_is_of_unknown_age() {
    let mut b = bench("");
    b.decoder.refuse_retained = true;
    let kept = Publish { retain: true, ..publish("plant/p1/t", b"1") };
    let result = b.decoder.decode(&kept, "", NOW, &mut b.registry, &mut b.out);
    assert_eq!(result, Err(Reject::Retained));
}

#[test]
fn reasons_are_their_own_index() {
    for (i, reason) in Reject::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, i);
    }
}
