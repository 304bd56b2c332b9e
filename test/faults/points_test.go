package faults

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// point is a fault point in the code.
type point struct {
	name   string
	place  string   // file:line
	faults []string // "kill" first
}

// findPoints reads the points from the source of the module.
func findPoints(root string) ([]point, error) {
	var points []point
	files := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && (name == "build" || name == "bin" || name == "testdata" || name != "." && strings.HasPrefix(name, ".") && path != root) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && err == nil {
				err = addPoint(&points, call, files.Position(call.Pos()), root)
			}
			return err == nil
		})
		return err
	})
	slices.SortFunc(points, func(a, b point) int { return strings.Compare(a.name, b.name) })
	for i := range points[1:] {
		if a, b := points[i], points[i+1]; err == nil && a.name == b.name {
			err = fmt.Errorf("two points are called %s: %s and %s", a.name, a.place, b.place)
		}
	}
	return points, err
}

// addPoint adds the point that a call is, if it is one.
func addPoint(points *[]point, call *ast.CallExpr, at token.Position, root string) error {
	fun, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil
	}
	if pkg, ok := fun.X.(*ast.Ident); !ok || pkg.Name != "fault" {
		return nil
	}
	rel, err := filepath.Rel(root, at.Filename)
	if err != nil {
		return err
	}
	p := point{place: fmt.Sprintf("%s:%d", rel, at.Line), faults: []string{"kill"}}
	lit, ok := call.Args[0].(*ast.BasicLit)
	if !ok {
		return fmt.Errorf("%s: the name of a fault point must be a literal", p.place)
	}
	if p.name, err = strconv.Unquote(lit.Value); err != nil {
		return fmt.Errorf("%s: %w", p.place, err)
	}
	for _, arg := range call.Args[1:] {
		errno, ok := arg.(*ast.SelectorExpr)
		if !ok {
			return fmt.Errorf("%s: faults must be written unix.ENAME", p.place)
		}
		p.faults = append(p.faults, errno.Sel.Name)
	}
	if (fun.Sel.Name == "Fail") != (len(p.faults) > 1) {
		return fmt.Errorf("%s: Fail names errors, Point does not", p.place)
	}
	*points = append(*points, p)
	return nil
}
