package config

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDocumentedKeys: docs/configuration.md shows each key of ours, no other, and limits. That
// the values are the defaults is told by the test that runs a daemon with them.
func TestDocumentedKeys(t *testing.T) {
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```toml\n(.*?)```").FindSubmatch(page)
	if block == nil {
		t.Fatal("docs/configuration.md shows no TOML")
	}
	for _, limit := range []string{
		fmt.Sprintf("at most %d bytes, so", maxSocketPath-len(longestInState)), // state
		fmt.Sprintf("at most %d bytes.", maxEnginePath-len(".ttrpc")),          // address
		fmt.Sprintf("at most %d, and 0", maxPool),
	} {
		if !bytes.Contains(page, []byte(limit)) {
			t.Errorf("the page does not say %q", limit)
		}
	}
	var all file
	fill(reflect.ValueOf(&all).Elem())
	want := keys(reflect.TypeFor[file](), "", all.passthrough("/"))
	got := slices.Sorted(maps.Keys(keyLines(block[1])))
	if diff := cmp.Diff(slices.Sorted(slices.Values(want)), got); diff != "" {
		t.Error(diff)
	}
}

// fill sets whatever can be left out.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	}
}

// keys are the dotted keys of a document but those of others.
func keys(t reflect.Type, table string, others map[string]any) []string {
	var list []string
	for i := range t.NumField() {
		f := t.Field(i)
		key := table + f.Tag.Get("toml")
		if _, theirs := others[key]; theirs {
			continue
		}
		if f.Type.Kind() == reflect.Struct {
			list = append(list, keys(f.Type, key+".", others)...)
			continue
		}
		list = append(list, key)
	}
	return list
}
