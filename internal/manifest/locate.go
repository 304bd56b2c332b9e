package manifest

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
)

// locate finds which value of a document its type refuses: a decoder's own error names
// no index of a list, and for a quantity nothing at all. It goes down for as long as
// some part of what is refused is refused on its own.
func locate(raw any, object any, err error) (*field.Path, string) {
	path, value, t := descend(raw, reflect.TypeOf(object).Elem(), nil)
	if path == nil {
		return nil, err.Error()
	}
	return path, refusal(value, t, err)
}

func descend(raw any, t reflect.Type, at *field.Path) (*field.Path, any, reflect.Type) {
	if accepts(raw, t) {
		return nil, nil, nil
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch value := raw.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(value)) {
			child, ok := member(t, key)
			if !ok {
				continue
			}
			next := field.NewPath(key)
			switch {
			case at != nil && t.Kind() == reflect.Map:
				next = at.Key(key)
			case at != nil:
				next = at.Child(key)
			}
			if path, v, found := descend(value[key], child, next); path != nil {
				return path, v, found
			}
		}
	case []any:
		if t.Kind() == reflect.Slice && at != nil {
			for i, v := range value {
				if path, v, found := descend(v, t.Elem(), at.Index(i)); path != nil {
					return path, v, found
				}
			}
		}
	}
	return at, raw, t
}

// member is the type of an object's field or of a map's values.
func member(t reflect.Type, key string) (reflect.Type, bool) {
	switch t.Kind() {
	case reflect.Map:
		return t.Elem(), true
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == key {
				return f.Type, true
			}
			if f.Anonymous && name == "" {
				if found, ok := member(f.Type, key); ok {
					return found, true
				}
			}
		}
	}
	return nil, false
}

func accepts(raw any, t reflect.Type) bool {
	data, err := json.Marshal(raw)
	if err != nil {
		return false
	}
	return kjson.UnmarshalCaseSensitivePreserveInts(data, reflect.New(t).Interface()) == nil
}

// refusal says what is wrong with a value in the words of whoever wrote it.
func refusal(raw any, t reflect.Type, err error) string {
	is := "is an object"
	switch value := raw.(type) {
	case nil:
		is = "is nothing"
	case string:
		is = fmt.Sprintf("is the text %q", value)
	case bool, int64, float64:
		is = fmt.Sprintf("is %v", value)
	case []any:
		is = "is a list"
	}
	if t == reflect.TypeFor[resource.Quantity]() {
		return is + ", and must be a quantity, such as 500m or 64Mi"
	}
	must := ""
	switch t.Kind() {
	case reflect.String:
		must = "text"
		switch raw.(type) {
		case bool, int64, float64:
			must += ": put it in quotes"
		}
	case reflect.Bool:
		must = "true or false"
	case reflect.Int32, reflect.Int64:
		must = "a whole number"
	case reflect.Slice:
		must = "a list"
	case reflect.Map, reflect.Struct:
		must = "an object"
	default:
		return err.Error()
	}
	return is + ", and must be " + must
}
