// A small application: (cd examples && go build -o ../app app.go) && poolparty --max-pool-size 8 -- ./app
//
// The same as app.py, answer for answer.
package main

import (
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"log"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"time"

	"poolparty"
)

const form = `<!doctype html>
<meta charset="utf-8">
<title>A form</title>
<form method="post" action="/form">
<label>Your name <input name="name"></label>
<button>Send</button>
</form>
`

var page = template.Must(template.New("page").Parse(`<!doctype html>
<meta charset="utf-8">
<title>A page</title>
<h1>Hello, {{.Name}}!</h1>
<ul>
{{range .Items}}<li>{{.}}</li>
{{end}}</ul>
`))

var entities = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#x27;")

func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, body)
}

func html(w http.ResponseWriter) { w.Header().Set("Content-Type", "text/html; charset=utf-8") }

// first is the first value of a form's field.
func first(values []string, otherwise string) string {
	if len(values) == 0 {
		return otherwise
	}
	return values[0]
}

// object is a JSON object of texts and of values that are JSON already, in the order of its names and spaced as app.py
// has it.
func object(texts map[string]string, rest map[string]string) string {
	pairs := make([]string, 0, len(texts)+len(rest))
	for name, value := range texts {
		pairs = append(pairs, quoted(name)+": "+quoted(value))
	}
	for name, value := range rest {
		pairs = append(pairs, quoted(name)+": "+value)
	}
	sort.Strings(pairs)
	return "{" + strings.Join(pairs, ", ") + "}"
}

func quoted(text string) string {
	var out strings.Builder
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.Encode(text)
	return strings.TrimSuffix(out.String(), "\n")
}

func home(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" {
		text(w, http.StatusNotFound, "not found\n")
		return
	}
	text(w, http.StatusOK, "Hello from Go!\n")
}

func asJSON(w http.ResponseWriter, r *http.Request) {
	headers := map[string]string{"Host": r.Host} // which net/http keeps by itself
	for name, values := range r.Header {
		headers[name] = values[0]
	}
	w.Header().Set("Content-Type", "application/json")
	facts := map[string]string{"method": r.Method, "path": r.URL.Path, "query": r.URL.RawQuery}
	fmt.Fprintln(w, object(facts, map[string]string{"headers": object(headers, nil)}))
}

func formPage(w http.ResponseWriter, r *http.Request) {
	html(w)
	if r.Method != http.MethodPost {
		io.WriteString(w, form)
		return
	}
	if r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	r.ParseForm()
	name := entities.Replace(first(r.PostForm["name"], "nobody"))
	fmt.Fprintf(w, "<!doctype html>\n<meta charset=\"utf-8\">\n<p>Hello, %s!</p>\n", name)
}

func templatePage(w http.ResponseWriter, r *http.Request) {
	html(w)
	items := make([]string, 3)
	for n := range items {
		items[n] = fmt.Sprintf("%d times %d is %d", n+1, n+1, (n+1)*(n+1))
	}
	page.Execute(w, map[string]any{"Name": first(r.URL.Query()["name"], "nobody"), "Items": items})
}

func upload(w http.ResponseWriter, r *http.Request) {
	size, _ := io.Copy(io.Discard, r.Body)
	text(w, http.StatusOK, fmt.Sprintf("%d bytes\n", size))
}

func slow(w http.ResponseWriter, r *http.Request) {
	milliseconds, err := strconv.Atoi(first(r.URL.Query()["ms"], "100"))
	if err != nil {
		panic(err)
	}
	time.Sleep(time.Duration(milliseconds) * time.Millisecond)
	text(w, http.StatusOK, fmt.Sprintf("waited %d ms\n", milliseconds))
}

func main() {
	http.HandleFunc("/", home)
	http.HandleFunc("/json", asJSON)
	http.HandleFunc("/form", formPage)
	http.HandleFunc("/page", templatePage)
	http.HandleFunc("/upload", upload)
	http.HandleFunc("/slow", slow)
	http.HandleFunc("/error", func(http.ResponseWriter, *http.Request) { panic("this page always fails") })
	if err := poolparty.Serve(nil, nil); err != nil {
		log.Fatal(err)
	}
}
