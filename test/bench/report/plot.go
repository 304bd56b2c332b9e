package main

import (
	"image/color"

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

// bars draws a group: bars of the medians, a cluster for each measure.
func bars(run results.Run, group, path string) error {
	p := plot.New()
	p.Title.Text, p.Legend.Top, p.Y.Min = group, true, 0
	p.X.Tick.Label.Rotation, p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = 0.35, draw.XRight, draw.YCenter
	measures, sides := run.Measures(group), run.Sides(group)
	width := vg.Points(60 / float64(len(sides)))
	unit := ""
	for i, side := range sides {
		values := make(plotter.Values, len(measures))
		for j, measure := range measures {
			if s, ok := run.Find(group, measure, side); ok {
				values[j], unit = s.P50, s.Unit
			}
		}
		chart, err := plotter.NewBarChart(values, width)
		if err != nil {
			return err
		}
		chart.Color, chart.LineStyle.Width = colours[i%len(colours)], 0
		chart.Offset = width * vg.Length(float64(i)-float64(len(sides)-1)/2)
		p.Add(chart)
		p.Legend.Add(side, chart)
	}
	p.Y.Label.Text = unit
	p.NominalX(measures...)
	return p.Save(vg.Points(max(420, 90*float64(len(measures)))), vg.Points(300), path)
}
