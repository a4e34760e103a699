-- What wrk sends: the bodies of a file, one per line, in turn. Arguments: the file, and whether to look at the answers.
-- Looking costs the load generator more than asking does, so it is done in the warm-up.

local requests, number, thread = {}, 0, nil

function setup(started)
  thread = started
end

function init(arguments)
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Accept"] = "application/json"
  for body in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, nil, body)
  end
  refused = 0
  if arguments[2] == "look" then
    response = function(status, headers, body)
      -- Nothing that is asked for is null, unless it was not found.
      if status ~= 200 or body:sub(1, 9) ~= '{"data":{' or body:find(':null', 1, true) or body:find('"errors"', 1, true) then
        refused = refused + 1
      end
    end
  end
end

function request()
  number = number % #requests + 1
  return requests[number]
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '\nRESULT {"answers":%d,"seconds":%.6f,"failed":%d,"refused":%d,"p50_ms":%.4f,"p99_ms":%.4f}\n',
    summary.requests, summary.duration / 1e6, failed, thread:get("refused"),
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
  ))
end
