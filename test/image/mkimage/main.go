// Command mkimage writes an image archive made of busybox-static:
//
//	go run ./test/image/mkimage -o x.tar -ref docker.io/library/x:latest -- sh -c 'echo hi'
package main

import (
	"flag"
	"fmt"
	"os"

	"caisson/test/image"
)

func main() {
	out := flag.String("o", "", "file to write (required)")
	ref := flag.String("ref", image.DefaultRef, "full name of the image")
	flag.Parse()
	if *out == "" {
		fmt.Fprintln(os.Stderr, "mkimage: say where to write the archive: -o FILE")
		os.Exit(2)
	}
	if err := image.WriteFile(*out, image.Options{Ref: *ref, Cmd: flag.Args()}); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}
