//! A reading, and the names behind its indices.

use std::collections::HashMap;

use gemba_shared::{
    ids::{MachineId, SensorId},
    telemetry::{Clock, SENSORS_MAX, Timestamp},
};

/// A machine's place in the [`Registry`] of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineIx(pub u32);

/// A sensor's position in its machine's catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SensorIx(pub u16);

/// One measured value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    pub machine: MachineIx,
    pub sensor: SensorIx,
    /// Event time: when it was measured, or when it arrived where the source gives no time.
    pub at: Timestamp,
    /// Finite.
    pub value: f64,
}

/// What the clocks say; read in run loops, handed to everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The time, or what is the best guess of it.
    pub wall: Timestamp,
    /// Microseconds since the machine started, sleep included; never steps.
    pub mono_us: i64,
    /// [`Clock::Trusted`], or [`Clock::SinceBoot`] while nobody knows the time.
    pub clock: Clock,
}

impl Now {
    /// The event time of what arrives now and has no time of its own. While nobody knows the time it counts from the start of the
    /// machine, and can be made a real one when the time is known.
    #[must_use]
    pub const fn arrival(&self) -> Timestamp {
        match self.clock {
            Clock::SinceBoot { .. } => Timestamp(self.mono_us),
            _ => self.wall,
        }
    }

    /// What others are told of [`Now::wall`].
    #[must_use]
    pub const fn told(&self) -> Clock {
        match self.clock {
            Clock::SinceBoot { .. } => Clock::Untrusted,
            clock => clock,
        }
    }
}

/// Why a machine or a sensor was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegistryFull {
    #[error("the gateway has its most machines ({0}) already")]
    Machines(usize),
    #[error("the machine has its most sensors ({0}) already")]
    Sensors(usize),
}

/// Machines and sensors by name. Entries are only ever added.
#[derive(Debug)]
pub struct Registry {
    machines_max: usize,
    sensors_max: usize,
    machines: Vec<Machine>,
    by_name: HashMap<MachineId, MachineIx>,
}

#[derive(Debug)]
struct Machine {
    id: MachineId,
    sensors: Vec<SensorId>,
    by_name: HashMap<SensorId, SensorIx>,
}

impl Registry {
    /// At most `machines_max` machines of `sensors_max` sensors each (never more than [`SENSORS_MAX`]).
    #[must_use]
    pub fn new(machines_max: usize, sensors_max: usize) -> Self {
        let sensors_max = sensors_max.min(SENSORS_MAX);
        Self { machines_max, sensors_max, machines: Vec::new(), by_name: HashMap::new() }
    }

    /// Takes other limits; what is beyond them already stays.
    pub fn set_limits(&mut self, machines_max: usize, sensors_max: usize) {
        (self.machines_max, self.sensors_max) = (machines_max, sensors_max.min(SENSORS_MAX));
    }

    /// The machine of this name, taken in if it is new.
    ///
    /// # Errors
    /// If it is new and the registry is full.
    pub fn machine(&mut self, id: &MachineId) -> Result<MachineIx, RegistryFull> {
        if let Some(&ix) = self.by_name.get(id) {
            return Ok(ix);
        }
        if self.machines.len() >= self.machines_max {
            return Err(RegistryFull::Machines(self.machines_max));
        }
        let ix = MachineIx(u32::try_from(self.machines.len()).map_err(|_| RegistryFull::Machines(self.machines_max))?);
        self.machines.push(Machine { id: id.clone(), sensors: Vec::new(), by_name: HashMap::new() });
        self.by_name.insert(id.clone(), ix);
        Ok(ix)
    }

    /// The sensor of this name, taken in at the end of the machine's catalog if it is new.
    ///
    /// # Errors
    /// If it is new and the machine is full.
    ///
    /// # Panics
    /// If `machine` is not of this registry.
    pub fn sensor(&mut self, machine: MachineIx, id: &SensorId) -> Result<SensorIx, RegistryFull> {
        let entry = &mut self.machines[machine.0 as usize];
        if let Some(&ix) = entry.by_name.get(id) {
            return Ok(ix);
        }
        if entry.sensors.len() >= self.sensors_max {
            return Err(RegistryFull::Sensors(self.sensors_max));
        }
        let ix = SensorIx(u16::try_from(entry.sensors.len()).map_err(|_| RegistryFull::Sensors(self.sensors_max))?);
        entry.sensors.push(id.clone());
        entry.by_name.insert(id.clone(), ix);
        Ok(ix)
    }

    #[must_use]
    pub fn machine_id(&self, machine: MachineIx) -> &MachineId {
        &self.machines[machine.0 as usize].id
    }

    /// The machine's sensors, by position.
    #[must_use]
    pub fn sensors(&self, machine: MachineIx) -> &[SensorId] {
        &self.machines[machine.0 as usize].sensors
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.machines.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }
}
