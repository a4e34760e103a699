#!/usr/bin/env bash
# Watch a task with curl alone: the stream as it comes, again after each break, from the last number seen.
set -euo pipefail
url=${SPECTRAL_URL:-http://127.0.0.1:8000/graphql}
task=${1:-report-5f0c9a41}
query='subscription ($id: ID!, $after: Int) { taskUpdates(taskId: $id, afterSeq: $after) { events { seq message } } }'
seen=0 ended=

# The key goes to curl by a pipe: the arguments of a program can be read by everybody on the machine.
while [ -z "$ended" ]; do
  # A refusal has no end of line.
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      'event: complete') ended=yes ;;
      *'"errors":'*) echo "refused ${line#data: }" >&2; exit 1 ;;
      *'"seq":'*)
        grep -o '{"seq":[^}]*}' <<< "$line" | sed -E 's/\{"seq":([0-9]+),"message":"(.*)"\}/event \1 \2/'
        seen=$(grep -o '"seq":[0-9]*' <<< "$line" | tail -n 1 | grep -o '[0-9]*')
        ;;
    esac
  done < <(curl -sSN "$url" -H 'Accept: text/event-stream' -H 'Content-Type: application/json' \
    --config <(printf '%s' "${SPECTRAL_KEY:+header = \"Authorization: Bearer $SPECTRAL_KEY\"}") \
    -d "{\"query\": \"$query\", \"variables\": {\"id\": \"$task\", \"after\": $seen}}" || true)
  [ -n "$ended" ] || sleep 1
done
echo ended
