//! From the configuration to what the pipeline is told of its machines.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::report::ModelState;
use crate::{
    config::{self, Config},
    detect::model::Model,
    journal::JournalSettings,
    pipeline::PipelineSettings,
    summary::{MachineSettings, ModeRule},
    window::Periods,
};

/// Where models lie when the configuration does not say it.
const INSTALLED: &str = "/usr/share/gemba/models";

/// What the pipeline is told, and what became of each model that is named.
pub(super) fn pipeline(config: &Config) -> (PipelineSettings, Vec<ModelState>) {
    let mut models = Models { dir: models_dir(config), loaded: HashMap::new(), states: Vec::new() };
    let defaults = MachineSettings {
        periods: periods(&config.defaults),
        model: config.default_model.as_deref().and_then(|name| models.load(name)),
        ..MachineSettings::default()
    };
    let machines = config.machines.iter().map(|machine| {
        let model = machine.model.as_deref().or(config.default_model.as_deref());
        let settings = MachineSettings {
            periods: periods(&machine.periods),
            units: machine.units.iter().cloned().collect(),
            power: machine.power.clone(),
            mode: machine.mode.as_ref().map(|rule| ModeRule {
                sensor: rule.sensor.clone(),
                off_below: rule.off_below,
                idle_below: rule.idle_below,
            }),
            model: model.and_then(|name| models.load(name)),
            ..MachineSettings::default()
        };
        (machine.id.clone(), Arc::new(settings))
    });
    let machines = machines.collect();
    let journal = JournalSettings {
        budget_bytes: config.journal_bytes_max,
        disk_free_min: config.disk_free_min / 2,
        sync_every: config.sync_interval,
        ..JournalSettings::default()
    };
    let skew_future_us = i64::try_from(config.limits.skew_future.as_micros()).unwrap_or(i64::MAX);
    (PipelineSettings { journal, skew_future_us, defaults: Arc::new(defaults), machines }, models.states)
}

fn periods(periods: &config::Periods) -> Periods {
    let us = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    Periods {
        step_us: us(periods.step),
        interval_us: us(periods.interval),
        lateness_us: us(periods.lateness),
        hold_us: us(periods.hold),
    }
}

fn models_dir(config: &Config) -> PathBuf {
    let beside = config.folder.join("models");
    config.models_dir.clone().unwrap_or_else(|| if beside.is_dir() { beside } else { Path::new(INSTALLED).to_owned() })
}

struct Models {
    dir: PathBuf,
    loaded: HashMap<String, Option<Arc<Model>>>,
    states: Vec<ModelState>,
}

impl Models {
    /// A model that cannot be used is told of once, and the baseline judges in its place.
    fn load(&mut self, name: &str) -> Option<Arc<Model>> {
        if let Some(known) = self.loaded.get(name) {
            return known.clone();
        }
        let place = self.dir.join(name);
        let model = match Model::load(&place) {
            Ok(model) => {
                tracing::info!(model = name, version = model.version(), "model loaded");
                self.states.push(ModelState { name: name.to_owned(), refused: None });
                Some(Arc::new(model))
            }
            Err(error) => {
                let place = place.display();
                tracing::error!(model = name, %place, %error, "model refused: the built-in baseline judges");
                self.states.push(ModelState { name: name.to_owned(), refused: Some(error.to_string()) });
                None
            }
        };
        self.loaded.insert(name.to_owned(), model.clone());
        model
    }
}
