//! Steps and intervals of readings in, out of and beyond order.

use super::*;

const SECOND: i64 = 1_000_000;

fn at(tenths: i64) -> Timestamp {
    Timestamp(tenths * SECOND / 10)
}

/// A window that has taken these readings: (sensor, tenths of a second, value), each when it was measured.
fn window(readings: &[(u16, i64, f64)]) -> Window {
    let mut window = Window::new(Periods::default());
    for (sensor, tenths, value) in readings {
        assert_eq!(window.push(SensorIx(*sensor), at(*tenths), *value, true, at(*tenths).0, 0), Taken::Counted);
    }
    window
}

fn close_all(window: &mut Window, tenths: i64) -> (Vec<Step>, Vec<Interval>) {
    let (mut steps, mut intervals) = (Vec::new(), Vec::new());
    while let Some((step, interval)) = window.close_next(at(tenths).0) {
        steps.extend(step);
        intervals.extend(interval);
    }
    (steps, intervals)
}

fn figures(count: u32, min: f64, max: f64, mean: f64, sd: f64, last: f64, quality: Quality) -> SensorSummary {
    SensorSummary { count, min, max, mean, sd, last, quality }
}

#[test]
fn readings_become_means_of_steps_and_figures_of_intervals() {
    let mut window = window(&[(0, 1, 2.0), (0, 5, 4.0), (1, 7, -1.0), (0, 12, 9.0), (0, 130, 1.0)]);
    let (steps, intervals) = close_all(&mut window, 130);
    assert_eq!(steps[0].values, [3.0, -1.0]);
    assert_eq!(steps[1], Step { start: at(10), values: vec![9.0, -1.0], measured: vec![true, false] });
    assert_eq!(steps.len(), 11, "closed up to 13.0 s less the lateness");
    let sd = ((9.0_f64 + 1.0 + 16.0) / 3.0).sqrt();
    assert_eq!(
        intervals,
        [Interval {
            start: at(0),
            sensors: vec![
                Some(figures(3, 2.0, 9.0, 5.0, sd, 9.0, Quality::Good)),
                Some(figures(1, -1.0, -1.0, -1.0, 0.0, -1.0, Quality::Good)),
            ],
            energy_wh: None,
        }]
    );
}

#[test]
fn a_silent_machine_is_held_then_missing_then_makes_nothing() {
    let mut window = window(&[(0, 5, 7.0)]);
    let (steps, intervals) = close_all(&mut window, 10_000);
    assert_eq!(steps.len(), 31);
    let qualities: Vec<_> = intervals.iter().map(|interval| interval.sensors[0].unwrap().quality).collect();
    assert_eq!(qualities, [Quality::Good, Quality::Held, Quality::Held]);
    assert!(!window.is_due(at(20_000).0));
    // Days later it goes on where the readings are.
    window.push(SensorIx(0), at(3_000_005), 8.0, true, at(3_000_005).0, 0);
    let (steps, intervals) = close_all(&mut window, 3_000_400);
    assert_eq!((steps[0].start, steps[0].values[0]), (at(3_000_000), 8.0));
    assert_eq!(intervals[0].start, at(3_000_000));
}

#[test]
fn what_a_machine_kept_while_it_was_cut_off_is_in_time() {
    let mut window = window(&[(0, 5, 1.0), (0, 96, 2.0)]);
    // 28 s of silence: the steps that were measured are judged, no interval is closed without what belongs to it.
    let (steps, intervals) = close_all(&mut window, 376);
    assert_eq!((steps.len(), intervals.len()), (9, 0));
    for tenths in (97..376).step_by(3) {
        assert_eq!(window.push(SensorIx(0), at(tenths), 3.0, true, at(376).0, 0), Taken::Counted);
    }
    let (_, intervals) = close_all(&mut window, 377);
    assert_eq!(intervals.iter().map(|interval| interval.sensors[0].unwrap().count).collect::<Vec<_>>(), [3, 34, 33]);
}

#[test]
fn late_is_what_comes_after_its_interval_was_closed() {
    let mut window = window(&[(0, 5, 1.0), (0, 60, 2.0)]);
    close_all(&mut window, 60);
    // Its step is closed, its interval is not.
    assert_eq!(window.push(SensorIx(0), at(10), 3.0, true, 0, 0), Taken::Counted);
    window.push(SensorIx(0), at(125), 4.0, true, at(125).0, 0);
    let (_, intervals) = close_all(&mut window, 125);
    assert_eq!(intervals[0].sensors[0].unwrap().count, 3);
    assert_eq!(window.push(SensorIx(0), at(99), 3.0, true, 0, 0), Taken::Late);
}

#[test]
fn a_reading_that_comes_again_is_known_if_it_has_a_time_of_its_own() {
    let mut window = window(&[(0, 5, 1.0), (0, 6, 1.0), (0, 6, 2.0)]);
    let mut again = |sensor, tenths, value, timed| window.push(SensorIx(sensor), at(tenths), value, timed, 0, 0);
    assert_eq!(again(0, 5, 1.0, true), Taken::Duplicate);
    assert_eq!(again(0, 5, 1.0, false), Taken::Counted);
    assert_eq!(again(1, 5, 1.0, true), Taken::Counted);
    assert_eq!(again(0, 7, 1.0, true), Taken::Counted);
}

#[test]
fn energy_is_the_trapezoid_and_not_invented_over_gaps() {
    let mut window = Window::new(Periods::default());
    window.set_power(Some((SensorIx(0), 1_000.0)));
    // 3.6 kW for 5 s, a ramp to 7.2 kW over 10 s across the end of the interval, then a gap.
    for (tenths, kilowatts) in [(0, 3.6), (50, 3.6), (150, 7.2), (1_000, 7.2), (1_300, 7.2)] {
        window.push(SensorIx(0), at(tenths), kilowatts, true, at(tenths).0, 0);
    }
    let (_, intervals) = close_all(&mut window, 1_300);
    let energy: Vec<_> = intervals.iter().map(|interval| interval.energy_wh).collect();
    let rounded = |wh: Option<f64>| wh.map(|wh| (wh * 1_000.0).round() / 1_000.0);
    assert_eq!(rounded(energy[0]), Some(5.0 + 5.0 * 4.5 / 3.6));
    assert_eq!(rounded(energy[1]), Some(5.0 * 6.3 / 3.6));
    assert!(energy[2..4].iter().all(Option::is_none), "{energy:?}");
    assert_eq!(rounded(energy[energy.len() - 2]), Some(20.0));
}

#[test]
fn other_periods_lose_and_repeat_nothing() {
    let window = window(&[(0, 5, 1.0), (0, 95, 2.0), (0, 105, 4.0), (0, 125, 8.0)]);
    let mut closed = window.clone();
    close_all(&mut closed, 125);
    let periods = Periods { interval_us: 60 * SECOND, step_us: 2 * SECOND, ..Periods::default() };
    for (window, expected) in [(window, vec![(0, 15.0)]), (closed, vec![(600, 12.0)])] {
        let mut window = window.with_periods(periods);
        let (_, intervals) = close_all(&mut window, 3_000);
        let sums = intervals.iter().filter_map(|interval| {
            let figures = interval.sensors[0].filter(|figures| figures.count > 0)?;
            Some((interval.start.0 * 10 / SECOND, figures.mean * f64::from(figures.count)))
        });
        assert_eq!(sums.collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_window_goes_on_as_it_was_saved() {
    let mut window = window(&[(0, 5, 1.0), (1, 8, 5.0), (0, 27, 2.0)]);
    close_all(&mut window, 27);
    let mut again: Window = postcard::from_bytes(&postcard::to_stdvec(&window).unwrap()).unwrap();
    again.resume(at(27).0);
    // What open intervals have counted is not in the state: it is told again.
    for (sensor, tenths, value) in [(0, 5, 1.0), (1, 8, 5.0), (0, 27, 2.0)] {
        again.remember(SensorIx(sensor), at(tenths), value, true, 0);
    }
    assert_eq!(again, window);
    assert_eq!(format!("{:?}", close_all(&mut again, 500)), format!("{:?}", close_all(&mut window, 500)));
}
