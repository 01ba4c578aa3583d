// Command probe is the only file of prove.sh's test image: a web server, and
// the tools that prove.sh runs in a pod whose image has no shell.
//
//	probe serve [ADDR]   answer every request with this pod's name and addresses
//	probe get URL        fetch a page and print it
//	probe lookup NAME    resolve a name with the pod's own resolv.conf
//	probe sleep          wait for SIGTERM
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	arg := func(i int, or string) string {
		if len(os.Args) > i {
			return os.Args[i]
		}
		return or
	}
	switch arg(1, "serve") {
	case "serve":
		serve(arg(2, ":8080"))
	case "get":
		client := http.Client{Timeout: 5 * time.Second}
		resp, err := client.Get(arg(2, ""))
		check(err)
		_, err = io.Copy(os.Stdout, resp.Body)
		check(err)
	case "lookup":
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		addrs, err := net.DefaultResolver.LookupHost(ctx, arg(2, ""))
		check(err)
		fmt.Println(addrs)
	case "sleep":
		wait()
	default:
		log.Fatalf("probe: unknown command %q", os.Args[1])
	}
}

func serve(addr string) {
	name, _ := os.Hostname()
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "pod=%s path=%s from=%s\n", name, r.URL.Path, r.RemoteAddr)
	})
	log.Printf("%s listens on %s", name, addr)
	go func() { log.Fatal(http.ListenAndServe(addr, nil)) }()
	wait()
}

// wait returns on SIGTERM; pid 1 gets no default action for a signal.
func wait() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	<-ctx.Done()
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
