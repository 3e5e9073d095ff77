// Renders chat templates as Ollama does: Go's text/template, with Ollama's options, functions and collation of messages.
//
// Standard input: a JSON list of {"template": ..., "messages": [{"role": ..., "content": ...}]}.
// Standard output: a JSON list of {"text": ...} or {"error": ...}, in the same order.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"text/template"
	"time"
)

type message struct{ Role, Content string }

type job struct {
	Template string
	Messages []message
}

type result struct {
	Text  string `json:"text"`
	Error string `json:"error,omitempty"`
}

var functions = template.FuncMap{
	"json": func(value any) string {
		text, _ := json.Marshal(value)
		return string(text)
	},
	"currentDate":   func(...string) string { return time.Now().Format("2006-01-02") },
	"yesterdayDate": func(...string) string { return time.Now().AddDate(0, 0, -1).Format("2006-01-02") },
}

// collate joins neighbouring messages of one role, and collects all system messages beside them.
func collate(messages []message) (string, []*message) {
	var system []string
	var joined []*message
	for i := range messages {
		if messages[i].Role == "system" {
			system = append(system, messages[i].Content)
		}
		if last := len(joined) - 1; last >= 0 && joined[last].Role == messages[i].Role {
			joined[last].Content += "\n\n" + messages[i].Content
		} else {
			joined = append(joined, &messages[i])
		}
	}
	return strings.Join(system, "\n\n"), joined
}

func render(one job) result {
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(one.Template)
	if err != nil {
		return result{Error: err.Error()}
	}
	system, messages := collate(one.Messages)
	var out bytes.Buffer
	values := map[string]any{"System": system, "Messages": messages, "Tools": nil, "Response": "", "Think": false}
	if err := parsed.Execute(&out, values); err != nil {
		return result{Error: err.Error()}
	}
	return result{Text: out.String()}
}

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	results := make([]result, len(jobs))
	for i, one := range jobs {
		results[i] = render(one)
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(results); err != nil {
		panic(err)
	}
}
