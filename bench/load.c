/* Subscribers and a publisher for the benchmark: one thread, one epoll, one clock.
 *
 *     load PORT[:PORT] TASKS SUBSCRIPTION MUTATION [KEY]
 *
 * Sockets go to the first port, mutations to the second if there is one. TASKS is a file with one task ID per line; the two documents take $taskId, and the mutation $progress too. KEY is
 * sent with every mutation and in every connection_init. Commands come on stdin, a line of JSON answers each on stdout:
 *
 *     connect COUNT FIRST SPAN own|same    COUNT sockets with a subscription each; number i watches task
 *                                          FIRST + i % SPAN. Operations have IDs of their own, or all the same one
 *     fanout SECONDS                       one update, its answer and all its deliveries, then the next
 *     steady RATE SECONDS                  updates at fixed times, to the tasks of the sockets in turn
 *     idle SECONDS                         nothing, but pings are answered
 *     close                                close all sockets
 *
 * A delivery is one event that reached one subscriber. Its latency runs from the moment the mutation was written to its
 * socket (in `steady`: was due) to the return of the recv() that brought the end of the frame. Events are numbered
 * without a gap, and only this process reports on the tasks while it measures; so each subscriber is known to have got
 * each event exactly once and in order, or what it did not get is counted.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PUBLISHERS 32        /* connections for mutations, one under way on each */
#define CONNECTING_MAX 512   /* sockets between connect() and their snapshot */
#define PER_ADDRESS 4000     /* sockets from one 127.0.0.x: each address has its own ports */
#define EVENTS_AWAITED 64    /* events of one task whose due times are kept */
#define PATIENCE_S 30.0      /* how long nothing may arrive that has to */
#define COMPLAINTS_MAX 3     /* what went wrong is counted always, and shown so many times */
#define INBOX_BYTES (1 << 20)
#define ANSWER_BYTES 16384
#define MESSAGE_BYTES 8192

typedef struct {
  char *id;
  long published;              /* the number of the last event, once all updates are through */
  double due[EVENTS_AWAITED];  /* when the update was due that made an event, by its number */
} Task;

typedef enum { UPGRADING, ACKNOWLEDGING, SUBSCRIBING, LIVE } State;

typedef struct {
  int fd;  /* -1 when closed */
  State state;
  Task *task;
  long seq;  /* the number of the last event that arrived */
  char operation[33];
  char *rest;  /* the beginning of a frame whose end has not arrived */
  size_t rest_bytes;
} Socket;

typedef struct {
  int fd;  /* -1 when not connected */
  bool busy;
  size_t bytes;
  char answer[ANSWER_BYTES];
} Publisher;

/* What epoll hands back. Sockets are watched by their number from 0 on. */
enum { PUBLISHER_EVENT = 1 << 30, INPUT_EVENT = 1 << 29 };

/* Where sockets go, and where mutations do. */
static uint16_t port, publish_port;
static const char *subscription, *mutation, *key;
static int epoll;
static Task *tasks;
static long task_count;
static Socket *sockets;
static long socket_count, live_count;
static Publisher publishers[PUBLISHERS];
static char inbox[INBOX_BYTES];
static char command[256];
static size_t command_bytes;

/* Counted since the last command. */
static struct {
  long updates, answers, deliveries, frames, bytes;
  long missing, repeated, wrong, refused, closed;
} counted;
static int complaints;
static float *latencies;
static long latency_count, latency_room;

/* ---------------------------------------------------------------- small things */

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(1);
}

static void complain(const char *what, const char *text, size_t bytes) {
  if (complaints++ < COMPLAINTS_MAX) fprintf(stderr, "%s: %.*s\n", what, (int)(bytes > 500 ? 500 : bytes), text);
}

static void *grown(void *memory, size_t bytes) {
  void *larger = realloc(memory, bytes);
  if (larger == NULL) die("No memory for %zu bytes.", bytes);
  return larger;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static const char *found(const char *text, size_t bytes, const char *what) {
  return memmem(text, bytes, what, strlen(what));
}

/* One way for 64 bits to become 64 others (splitmix64). */
static uint64_t random_bits(void) {
  static uint64_t state = 1;
  uint64_t bits = state += 0x9e3779b97f4a7c15u;
  bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
  return bits ^ bits >> 31;
}

static int connected(uint16_t to_port, long number, uint32_t tag) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  if (fd < 0) die("No socket: %s.", strerror(errno));
  struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET, .sin_port = htons(to_port)};
  from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)(number / PER_ADDRESS));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (bind(fd, (struct sockaddr *)&from, sizeof from) || connect(fd, (struct sockaddr *)&to, sizeof to))
    die("No connection to port %u: %s.", to_port, strerror(errno));
  fcntl(fd, F_SETFL, O_NONBLOCK);
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = tag};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) die("epoll: %s.", strerror(errno));
  return fd;
}

/* What is sent is small, so it waits only while the server takes nothing. */
static void send_all(int fd, const char *text, size_t bytes) {
  while (bytes > 0) {
    ssize_t sent = send(fd, text, bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return; /* recv() will say so too */
    if (sent < 0) {
      poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, 1000);
      continue;
    }
    text += sent;
    bytes -= (size_t)sent;
  }
}

/* ---------------------------------------------------------------- subscribers */

static void send_frame(int fd, unsigned opcode, const char *text, size_t bytes) {
  char frame[MESSAGE_BYTES + 8] = {(char)(0x80 | opcode)};
  size_t head = 2;
  if (bytes > MESSAGE_BYTES) die("A message of %zu bytes is too long.", bytes);
  if (bytes < 126) {
    frame[1] = (char)(0x80 | bytes);
  } else {
    frame[1] = (char)(0x80 | 126);
    frame[2] = (char)(bytes >> 8);
    frame[3] = (char)bytes;
    head = 4;
  }
  head += 4; /* The mask, which is zero: masks protect proxies, and there is none. */
  memcpy(frame + head, text, bytes);
  send_all(fd, frame, head + bytes);
}

static void __attribute__((format(printf, 2, 3))) say(Socket *socket, const char *format, ...) {
  char message[MESSAGE_BYTES];
  va_list arguments;
  va_start(arguments, format);
  int bytes = vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  if (bytes >= (int)sizeof message) die("A message of %d bytes is too long.", bytes);
  send_frame(socket->fd, 1, message, (size_t)bytes);
}

static void on_event(Socket *socket, long seq, double now) {
  Task *task = socket->task;
  if (seq <= socket->seq) {
    counted.repeated++;
    return;
  }
  if (seq > task->published) {
    counted.wrong++;
    return;
  }
  counted.missing += seq - socket->seq - 1;
  socket->seq = seq;
  counted.deliveries++;
  if (latency_count == latency_room) {
    latency_room = latency_room ? 2 * latency_room : 1 << 16;
    latencies = grown(latencies, (size_t)latency_room * sizeof *latencies);
  }
  latencies[latency_count++] = (float)(now - task->due[seq % EVENTS_AWAITED]);
}

static void on_next(Socket *socket, const char *text, size_t bytes, double now) {
  const char *end = text + bytes, *events = found(text, bytes, "\"events\":["), *at;
  if (events == NULL || found(text, bytes, "\"errors\":") || !found(text, bytes, socket->operation)) {
    counted.wrong++;
    complain("An unexpected message", text, bytes);
    return;
  }
  if (socket->state == SUBSCRIBING) { /* The snapshot: the number of the task itself is where this subscriber begins. */
    at = found(text, (size_t)(events - text), "\"seq\":");
    if (at == NULL) die("A snapshot without seq: %.*s", (int)bytes, text);
    socket->seq = strtol(at + 6, NULL, 10);
    if (socket->task->published < socket->seq) socket->task->published = socket->seq;
    socket->state = LIVE;
    live_count++;
    return;
  }
  counted.frames++;
  for (at = events; (at = found(at, (size_t)(end - at), "\"seq\":")); at += 6)
    on_event(socket, strtol(at + 6, NULL, 10), now);
}

static void on_message(Socket *socket, const char *text, size_t bytes, double now) {
  if (socket->state >= SUBSCRIBING && found(text, bytes, "\"type\":\"next\"")) {
    on_next(socket, text, bytes, now);
  } else if (found(text, bytes, "\"type\":\"ping\"")) {
    say(socket, "{\"type\":\"pong\"}");
  } else if (socket->state == ACKNOWLEDGING && found(text, bytes, "\"type\":\"connection_ack\"")) {
    socket->state = SUBSCRIBING;
    say(socket,
        "{\"id\":\"%s\",\"type\":\"subscribe\",\"payload\":{\"query\":\"%s\",\"variables\":{\"taskId\":\"%s\"}}}",
        socket->operation, subscription, socket->task->id);
  } else {
    counted.wrong++;
    complain("An unexpected message", text, bytes);
  }
}

static void shut(Socket *socket) {
  close(socket->fd);
  socket->fd = -1;
  free(socket->rest);
  socket->rest = NULL;
}

/* Take what is complete; return how many bytes that was. */
static size_t take(Socket *socket, const char *text, size_t bytes, double now) {
  size_t taken = 0;
  if (socket->state == UPGRADING) {
    const char *end = found(text, bytes, "\r\n\r\n");
    if (end == NULL) return 0;
    if (strncmp(text, "HTTP/1.1 101", 12)) die("No WebSocket: %.*s", (int)bytes, text);
    taken = (size_t)(end + 4 - text);
    socket->state = ACKNOWLEDGING;
    if (key) say(socket, "{\"type\":\"connection_init\",\"payload\":{\"Authorization\":\"Bearer %s\"}}", key);
    else say(socket, "{\"type\":\"connection_init\"}");
  }
  while (bytes - taken >= 2) {
    const unsigned char *frame = (const unsigned char *)text + taken;
    size_t head = 2, body = frame[1] & 127;
    if (body >= 126) {
      head = body == 126 ? 4 : 10;
      if (bytes - taken < head) break;
      body = 0;
      for (size_t i = 2; i < head; i++) body = body << 8 | frame[i];
    }
    if (bytes - taken < head + body) break;
    const char *content = (const char *)frame + head;
    switch (frame[0]) {
      case 0x81: on_message(socket, content, body, now); break;
      case 0x88:
        complain("A socket was closed", content + (body >= 2 ? 2 : 0), body >= 2 ? body - 2 : 0);
        counted.closed++;
        shut(socket);
        return bytes;
      case 0x89: send_frame(socket->fd, 10, content, body); break;
      default: counted.wrong++; complain("An unexpected frame", content, body);
    }
    taken += head + body;
  }
  return taken;
}

static void on_socket(Socket *socket) {
  size_t bytes = socket->rest_bytes;
  if (bytes) memcpy(inbox, socket->rest, bytes);
  ssize_t got = recv(socket->fd, inbox + bytes, sizeof inbox - bytes, 0);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) {
    complain("A socket was lost", got ? strerror(errno) : "end of file", 100);
    counted.closed++;
    shut(socket);
    return;
  }
  double now = seconds();
  counted.bytes += got;
  bytes += (size_t)got;
  size_t taken = take(socket, inbox, bytes, now);
  socket->rest_bytes = bytes - taken;
  if (socket->rest_bytes == sizeof inbox) die("A frame of more than %d bytes.", INBOX_BYTES);
  if (socket->rest_bytes) {
    socket->rest = grown(socket->rest, socket->rest_bytes);
    memcpy(socket->rest, inbox + taken, socket->rest_bytes);
  }
}

static void open_socket(Socket *socket, long number, Task *task, bool own) {
  *socket = (Socket){.task = task, .fd = connected(port, number, (uint32_t)number)};
  snprintf(socket->operation, sizeof socket->operation, "%016llx%016llx",
           (unsigned long long)(own ? random_bits() : 0), (unsigned long long)(own ? random_bits() : 0));
  char request[512];
  int bytes = snprintf(request, sizeof request,
                       "GET /graphql HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                       "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                       "Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n", port);
  send_all(socket->fd, request, (size_t)bytes);
}

/* ---------------------------------------------------------------- the publisher */

static void hang_up(Publisher *publisher) {
  if (publisher->fd >= 0) close(publisher->fd);
  publisher->fd = -1;
  publisher->busy = false;
}

static void on_publisher(Publisher *publisher) {
  char *answer = publisher->answer;
  ssize_t got = recv(publisher->fd, answer + publisher->bytes, sizeof publisher->answer - 1 - publisher->bytes, 0);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) {
    if (publisher->busy) counted.refused++;
    complain("A connection was lost", got ? strerror(errno) : "end of file", 100);
    hang_up(publisher);
    return;
  }
  publisher->bytes += (size_t)got;
  answer[publisher->bytes] = 0;
  char *body = strstr(answer, "\r\n\r\n"), *length = strcasestr(answer, "\r\ncontent-length:");
  if (body == NULL) return;
  if (length == NULL || length > body) die("An answer without a length: %s", answer);
  if (publisher->bytes < (size_t)(body + 4 - answer) + strtoul(length + 17, NULL, 10)) return;
  if (strncmp(answer, "HTTP/1.1 200", 12) || strstr(body, "\"errors\"")) {
    counted.refused++;
    complain("A mutation was refused", answer, publisher->bytes);
  }
  counted.answers++;
  publisher->busy = false;
  publisher->bytes = 0;
}

static Publisher *free_publisher(void) {
  for (int i = 0; i < PUBLISHERS; i++)
    if (!publishers[i].busy) return &publishers[i];
  return NULL;
}

static void publish(Publisher *publisher, Task *task, double due) {
  char body[MESSAGE_BYTES], request[2 * MESSAGE_BYTES], authorization[512] = "";
  int bytes = snprintf(body, sizeof body, "{\"query\":\"%s\",\"variables\":{\"taskId\":\"%s\",\"progress\":%ld}}",
                       mutation, task->id, task->published % 101);
  if (bytes >= (int)sizeof body) die("A message of %d bytes is too long.", bytes);
  if (key) snprintf(authorization, sizeof authorization, "Authorization: Bearer %s\r\n", key);
  bytes = snprintf(request, sizeof request,
                   "POST /graphql HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nContent-Type: application/json\r\n"
                   "Accept: application/json\r\n%sContent-Length: %d\r\n\r\n%s", publish_port, authorization, bytes, body);
  if (publisher->fd < 0) publisher->fd = connected(publish_port, 0, PUBLISHER_EVENT | (uint32_t)(publisher - publishers));
  publisher->busy = true;
  task->published++;
  task->due[task->published % EVENTS_AWAITED] = due;
  counted.updates++;
  send_all(publisher->fd, request, (size_t)bytes);
}

/* ---------------------------------------------------------------- the loop */

static void on_input(void) {
  ssize_t got = read(STDIN_FILENO, command + command_bytes, sizeof command - 1 - command_bytes);
  if (got <= 0) exit(0);
  command_bytes += (size_t)got;
  command[command_bytes] = 0;
}

/* Serve what arrives until then; return as soon as something did. */
static void serve(double until) {
  static struct epoll_event events[512];
  double left = until - seconds();
  if (left < 0) left = 0;
  struct timespec time = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
  /* epoll_wait() counts in milliseconds, and updates are due between them. */
  if (ppoll(&(struct pollfd){.fd = epoll, .events = POLLIN}, 1, &time, NULL) <= 0) return;
  int count = epoll_wait(epoll, events, sizeof events / sizeof *events, 0);
  for (int i = 0; i < count; i++) {
    uint32_t tag = events[i].data.u32;
    if (tag & PUBLISHER_EVENT) on_publisher(&publishers[tag & ~PUBLISHER_EVENT]);
    else if (tag & INPUT_EVENT) on_input();
    else if (sockets[tag].fd >= 0) on_socket(&sockets[tag]);
  }
}

static void serve_all(double duration) {
  double end = seconds() + duration;
  while (seconds() < end) serve(end);
}

/* ---------------------------------------------------------------- commands */

static void begin(void) {
  memset(&counted, 0, sizeof counted);
  latency_count = 0;
}

/* Whether something happened after which it is of no use to wait. */
static bool failed(void) {
  return counted.missing || counted.repeated || counted.wrong || counted.refused || counted.closed;
}

static int by_size(const void *left, const void *right) {
  float a = *(const float *)left, b = *(const float *)right;
  return (a > b) - (a < b);
}

static double percentile_ms(double share) {
  return latency_count ? 1e3 * (double)latencies[(long)(share * (double)(latency_count - 1) + 0.5)] : 0;
}

static void end(double took) {
  serve_all(0.1); /* Whatever comes twice comes now. */
  for (long i = 0; i < socket_count; i++) counted.missing += sockets[i].task->published - sockets[i].seq;
  counted.refused += counted.updates - counted.answers;
  for (int i = 0; i < PUBLISHERS; i++) hang_up(&publishers[i]);
  qsort(latencies, (size_t)latency_count, sizeof *latencies, by_size);
  printf("{\"subscribers\":%ld,\"updates\":%ld,\"deliveries\":%ld,\"frames\":%ld,\"bytes\":%ld,\"seconds\":%.6f,"
         "\"p50_ms\":%.4f,\"p99_ms\":%.4f,"
         "\"missing\":%ld,\"repeated\":%ld,\"wrong\":%ld,\"refused\":%ld,\"closed\":%ld}\n",
         live_count, counted.updates, counted.deliveries, counted.frames, counted.bytes, took, percentile_ms(0.5),
         percentile_ms(0.99), counted.missing, counted.repeated, counted.wrong, counted.refused, counted.closed);
}

static void connect_all(long count, long first, long span, bool own) {
  if (socket_count) die("There are %ld sockets already.", socket_count);
  if (first + span > task_count) die("There are %ld tasks only.", task_count);
  sockets = grown(sockets, (size_t)count * sizeof *sockets);
  live_count = 0;
  double start = seconds(), progressed = start;
  while (live_count < count && !failed() && seconds() - progressed < PATIENCE_S) {
    long before = live_count;
    for (; socket_count < count && socket_count - live_count < CONNECTING_MAX; socket_count++)
      open_socket(&sockets[socket_count], socket_count, &tasks[first + socket_count % span], own);
    serve(seconds() + 1);
    if (live_count > before) progressed = seconds();
  }
  if (live_count < count) {
    long waiting[LIVE + 1] = {0};
    for (long i = 0; i < socket_count; i++) waiting[sockets[i].state]++;
    fprintf(stderr, "Sockets that wait for the upgrade: %ld, for connection_ack: %ld, for a snapshot: %ld; live: %ld.\n",
            waiting[UPGRADING], waiting[ACKNOWLEDGING], waiting[SUBSCRIBING], waiting[LIVE]);
  }
  end(seconds() - start);
}

static void fan_out(double duration) {
  double start = seconds();
  while (seconds() - start < duration) {
    double last = seconds();
    publish(free_publisher(), sockets[0].task, last);
    while ((counted.deliveries < counted.updates * socket_count || counted.answers < counted.updates) &&
           !failed() && seconds() - last < PATIENCE_S)
      serve(last + PATIENCE_S);
    if (failed() || counted.answers < counted.updates || counted.deliveries < counted.updates * socket_count) break;
  }
  end(seconds() - start);
}

static void publish_steadily(double rate, double duration) {
  long updates = (long)(rate * duration);
  double start = seconds(), give_up = start + duration + PATIENCE_S;
  while ((counted.answers < updates || counted.deliveries < updates) && !failed() && seconds() < give_up) {
    Publisher *publisher = NULL;
    double due = start + (double)counted.updates / rate;
    while (counted.updates < updates && due <= seconds() && (publisher = free_publisher())) {
      publish(publisher, sockets[counted.updates % socket_count].task, due);
      due = start + (double)counted.updates / rate;
    }
    serve(counted.updates < updates && free_publisher() ? due : give_up);
  }
  end(seconds() - start);
}

static void close_all(void) {
  for (long i = 0; i < socket_count; i++)
    if (sockets[i].fd >= 0) shut(&sockets[i]);
  socket_count = live_count = 0;
  end(0);
}

static void obey(const char *line) {
  long a, b, c;
  double x, y;
  char ids[8];
  begin();
  if (sscanf(line, "connect %ld %ld %ld %7s", &a, &b, &c, ids) == 4) connect_all(a, b, c, !strcmp(ids, "own"));
  else if (sscanf(line, "fanout %lf", &x) == 1 && socket_count) fan_out(x);
  else if (sscanf(line, "steady %lf %lf", &x, &y) == 2 && socket_count) publish_steadily(x, y);
  else if (sscanf(line, "idle %lf", &x) == 1) serve_all(x), end(x);
  else if (!strncmp(line, "close", 5)) close_all();
  else die("There is no command %s", line);
  fflush(stdout);
}

static void read_tasks(const char *path) {
  FILE *file = fopen(path, "r");
  char line[256];
  if (file == NULL) die("%s: %s.", path, strerror(errno));
  while (fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = 0;
    tasks = grown(tasks, (size_t)(task_count + 1) * sizeof *tasks);
    tasks[task_count++] = (Task){.id = strdup(line)};
  }
  fclose(file);
}

int main(int count, char **arguments) {
  if (count != 5 && count != 6) die("load PORT[:PORT] TASKS SUBSCRIPTION MUTATION [KEY]");
  port = publish_port = (uint16_t)atoi(arguments[1]);
  if (strchr(arguments[1], ':')) publish_port = (uint16_t)atoi(strchr(arguments[1], ':') + 1);
  read_tasks(arguments[2]);
  subscription = arguments[3];
  mutation = arguments[4];
  key = count == 6 ? arguments[5] : NULL;
  epoll = epoll_create1(0);
  for (int i = 0; i < PUBLISHERS; i++) publishers[i].fd = -1;
  struct epoll_event input = {.events = EPOLLIN, .data.u32 = INPUT_EVENT};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &input)) die("stdin must be a pipe.");
  for (;;) {
    char *end = memchr(command, '\n', command_bytes);
    if (end == NULL) {
      serve(seconds() + 3600);
      continue;
    }
    char line[sizeof command];
    size_t bytes = (size_t)(end + 1 - command);
    memcpy(line, command, bytes);
    line[bytes] = 0;
    memmove(command, end + 1, command_bytes -= bytes);
    obey(line);
  }
}
