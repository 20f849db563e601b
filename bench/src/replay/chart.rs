//! The chart: reuse and time to first token over the size of the store's DRAM.

use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::prelude::*;

/// A line that DRAM does not move.
#[derive(Clone, Debug)]
pub(crate) struct Level {
    pub(crate) name: String,
    pub(crate) value: f64,
}

/// One half of the chart.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    /// Curves over the size of DRAM, as a multiple of the engines' memory.
    pub(crate) curves: Vec<(String, Vec<(f64, f64)>)>,
    pub(crate) levels: Vec<Level>,
}

const SIZE: (u32, u32) = (1_200, 520);
const COLORS: [RGBColor; 6] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xff, 0x7f, 0x0e),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0x7f, 0x7f, 0x7f),
];

/// Draws the panels side by side into an SVG file.
pub(crate) fn draw(path: &Path, title: &str, panels: &[Panel]) -> anyhow::Result<()> {
    // A name has one color in all panels.
    let mut names: Vec<&str> = Vec::new();
    for panel in panels {
        let all =
            panel.curves.iter().map(|(name, _)| name).chain(panel.levels.iter().map(|level| &level.name));
        for name in all {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
    }
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    let result = (|| {
        root.fill(&WHITE)?;
        let area = root.titled(title, ("sans-serif", 18))?;
        for (part, panel) in area.split_evenly((1, panels.len())).into_iter().zip(panels) {
            draw_panel(&part, panel, &names)?;
        }
        root.present()
    })();
    result.map_err(|error| anyhow!("{error}")).with_context(|| format!("draw {}", path.display()))
}

type DrawResult<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw_panel<'a>(
    area: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    panel: &Panel,
    names: &[&str],
) -> DrawResult<'a> {
    let points = || panel.curves.iter().flat_map(|(_, points)| points.iter().copied());
    let right = points().map(|(x, _)| x).fold(1.0, f64::max);
    let levels = panel.levels.iter().map(|level| level.value);
    let top = points().map(|(_, y)| y).chain(levels).fold(0.0, f64::max) * 1.35;
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 15))
        .margin(12)
        .x_label_area_size(38)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..right, 0.0..top.max(f64::MIN_POSITIVE))?;
    chart
        .configure_mesh()
        .x_desc("DRAM / memory of all engines")
        .y_desc(panel.unit)
        .light_line_style(WHITE)
        .draw()?;
    let color = |name: &str| {
        let number = names.iter().position(|other| *other == name).expect("all names are listed");
        COLORS[number % COLORS.len()]
    };
    for (name, points) in &panel.curves {
        let color = color(name);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(3))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    for level in &panel.levels {
        let color = color(&level.name);
        chart
            .draw_series(DashedLineSeries::new(
                [(0.0, level.value), (right, level.value)],
                6,
                4,
                color.stroke_width(1),
            ))?
            .label(&level.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(1)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_names_its_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chart.svg");
        let panel = Panel {
            title: "reuse".into(),
            unit: "%",
            curves: vec![("kelvin".into(), vec![(0.0, 10.0), (4.0, 30.0)])],
            levels: vec![Level { name: "ideal".into(), value: 37.0 }],
        };
        draw(&path, "a trace", &[panel.clone(), panel]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for text in ["<svg", "a trace", "kelvin", "ideal", "polyline", "</svg>"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(draw(&dir.path().join("no/where.svg"), "", &[]).is_err());
    }
}
