// Command reference writes the reference of caisson and caissond from the commands
// themselves: Markdown, which is committed, and man pages; and the page on caissond's
// configuration from its source. `make docs` runs it in the module's directory, and its
// test fails when what is committed is stale.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"caisson/internal/cli"
	"caisson/internal/daemon"
)

// programs are all that users run, with the section of their man pages.
func programs() map[string]*cobra.Command {
	return map[string]*cobra.Command{"1": cli.Command(), "8": daemon.Command()}
}

func main() {
	markdown := flag.String("markdown", "", "directory of the Markdown pages; others of theirs go")
	man := flag.String("man", "", "directory of the man pages")
	page := flag.String("configuration", "", "the page on the configuration")
	flag.Parse()
	err := run(*markdown, *man)
	if err == nil && *page != "" {
		err = writeConfiguration(*page)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "reference: %v\n", err)
		os.Exit(1)
	}
}

func writeConfiguration(path string) error {
	text, err := configuration("internal/config")
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

func run(markdown, man string) error {
	if markdown != "" {
		pages, err := pages()
		if err != nil {
			return err
		}
		if err := write(markdown, pages); err != nil {
			return err
		}
	}
	if man == "" {
		return nil
	}
	for section, cmd := range programs() {
		cmd.DisableAutoGenTag = true
		if err := doc.GenManTree(cmd, &doc.GenManHeader{Section: section, Source: "Caisson", Manual: "Caisson"}, man); err != nil {
			return err
		}
	}
	return nil
}

// pages are the Markdown pages by file name, one for each command.
func pages() (map[string][]byte, error) {
	all := map[string][]byte{}
	for _, cmd := range programs() {
		cmd.DisableAutoGenTag = true
		if err := addPages(all, cmd); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func addPages(all map[string][]byte, cmd *cobra.Command) error {
	var page bytes.Buffer
	if err := doc.GenMarkdown(cmd, &page); err != nil {
		return fmt.Errorf("%s: %w", cmd.CommandPath(), err)
	}
	text := append(bytes.TrimSpace(page.Bytes()), '\n')
	all[strings.ReplaceAll(cmd.CommandPath(), " ", "_")+".md"] = text
	for _, sub := range cmd.Commands() {
		if !sub.IsAvailableCommand() || sub.IsAdditionalHelpTopicCommand() {
			continue
		}
		if err := addPages(all, sub); err != nil {
			return err
		}
	}
	return nil
}

// write makes the directory's pages these and no others.
func write(dir string, pages map[string][]byte) error {
	old, err := filepath.Glob(filepath.Join(dir, "caisson*.md"))
	if err != nil {
		return err
	}
	for _, path := range old {
		if pages[filepath.Base(path)] == nil {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
