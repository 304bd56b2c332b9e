// Command webserver stands in for nginx and httpd in the images that critest
// wants: it serves a page and looks, to ps and pidof, like the program whose
// name it has. Called nnp it prints its effective user instead, for a file that
// has the set-user-ID bit, and called pause it waits for a signal.
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
)

func main() {
	name := filepath.Base(os.Args[0])
	switch name {
	case "nnp":
		fmt.Println("Effective uid:", os.Geteuid())
		return
	case "pause":
		ended := make(chan os.Signal, 1)
		signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM)
		<-ended
		return
	}
	if err := serve(name); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve takes the port as its argument. It starts itself once more, with the
// command line that nginx's master process gives itself.
func serve(name string) error {
	const role = ": master process"
	if name == "nginx" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		return syscall.Exec(self, append([]string{name + role}, os.Args[1:]...), os.Environ())
	}
	port := "80"
	if len(os.Args) > 1 {
		port = os.Args[1]
	}
	if err := os.WriteFile("/var/run/nginx.pid", []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return err
	}
	fmt.Printf("%s listens on port %s\n", name, port)
	return http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "<html><body>A page of %s.</body></html>\n", name)
	}))
}
