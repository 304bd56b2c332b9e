package main

import (
	"image/color"
	"math"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"caisson/test/bench/results"
)

// colours of the sides, by their place in the group; they differ in brightness too.
var colours = []color.Color{
	color.RGBA{0x4c, 0x4c, 0x4c, 0xff}, color.RGBA{0x1f, 0x77, 0xb4, 0xff}, color.RGBA{0x9e, 0xc9, 0xe2, 0xff},
	color.RGBA{0x8a, 0x8a, 0x8a, 0xff}, color.RGBA{0x2c, 0xa0, 0x2c, 0xff}, color.RGBA{0xa6, 0xdb, 0xa0, 0xff},
}

// wide is the ratio of values above which a linear scale shows nothing of the small ones.
const wide = 100

// bars draws what a group has of a unit: bars of the medians, a cluster for each
// measure, and beside them what their colours mean.
func bars(run results.Run, group, unit, path string) error {
	sides, legend := run.Sides(group), plot.NewLegend()
	var measures []string
	for _, measure := range run.Measures(group) {
		if hasUnit(run, group, measure, unit) {
			measures = append(measures, measure)
		}
	}
	p := plot.New()
	p.Title.Text, p.Y.Label.Text, p.Y.Min = group, unit, 0
	p.X.Tick.Label.Rotation, p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = 0.35, draw.XRight, draw.YTop
	height := heights(run, group, unit, p)
	bar := vg.Points(60 / float64(len(sides)))
	for i, side := range sides {
		values := make(plotter.Values, len(measures))
		for j, measure := range measures {
			if s, ok := run.Find(group, measure, side); ok {
				values[j] = height(s.P50)
			}
		}
		chart, err := plotter.NewBarChart(values, bar)
		if err != nil {
			return err
		}
		chart.Color, chart.LineStyle.Width = colours[i%len(colours)], 0
		chart.Offset = bar * vg.Length(float64(i)-float64(len(sides)-1)/2)
		p.Add(chart)
		legend.Add(side, chart)
	}
	p.NominalX(measures...)
	return save(p, legend, vg.Points(max(360, 90*float64(len(measures)))), path)
}

func hasUnit(run results.Run, group, measure, unit string) bool {
	for _, side := range run.Sides(group) {
		if s, ok := run.Find(group, measure, side); ok && s.Unit == unit {
			return true
		}
	}
	return false
}

// heights returns how high a value's bar is. If the values differ much, that is its
// logarithm, and the axis is labelled so: its lowest power of ten has no height.
func heights(run results.Run, group, unit string, p *plot.Plot) func(float64) float64 {
	least, most := math.Inf(1), 0.0
	for _, s := range run.Stats {
		if s.Group == group && s.Unit == unit && s.P50 > 0 {
			least, most = min(least, s.P50), max(most, s.P50)
		}
	}
	if most <= wide*least {
		return func(v float64) float64 { return v }
	}
	lowest := math.Floor(math.Log10(least) - 0.2) // the least bar is seen, too
	highest := math.Ceil(math.Log10(most))
	var ticks plot.ConstantTicks
	for power := lowest; power <= highest; power++ {
		ticks = append(ticks, plot.Tick{Value: power - lowest, Label: results.Number(math.Pow(10, power))})
	}
	p.Y.Tick.Marker, p.Y.Max, p.Y.Label.Text = ticks, highest-lowest, unit+" (logarithmic)"
	return func(v float64) float64 {
		if v <= 0 {
			return 0
		}
		return max(math.Log10(v)-lowest, 0)
	}
}

// save draws the plot, so wide, with the legend at its right.
func save(p *plot.Plot, legend plot.Legend, width vg.Length, path string) error {
	const height, beside = vg.Length(300), vg.Length(230) // points
	canvas, err := draw.NewFormattedCanvas(width+beside, height, "svg")
	if err != nil {
		return err
	}
	all := draw.New(canvas)
	p.Draw(draw.Crop(all, 0, -beside, 0, 0))
	legend.Top, legend.Left, legend.Padding, legend.YOffs = true, true, 3, -20
	legend.Draw(draw.Crop(all, width+8, 0, 0, 0))
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := canvas.WriteTo(f); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
