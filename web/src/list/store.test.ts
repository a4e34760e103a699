import { describe, expect, test, vi } from "vitest";
import type { TaskSummary, TaskSummaryUpdate } from "../api/documents";
import { EVERYTHING } from "./filter";
import { type Page, TaskList } from "./store";
import { task } from "./task.fixture";

function page(tasks: TaskSummary[], hasNextPage = false): Page {
  return { edges: tasks.map((node) => ({ node, cursor: `after ${node.id}` })), pageInfo: { hasNextPage } };
}

function update(changed: TaskSummary, type: TaskSummaryUpdate["type"] = "EVENT"): TaskSummaryUpdate {
  return { type, task: changed };
}

function listOf(tasks: TaskSummary[], hasNextPage = false, filter = EVERYTHING): TaskList {
  const list = new TaskList(filter);
  list.append(page(tasks, hasNextPage));
  return list;
}

const A = task({ taskId: "a" }, 3);
const B = task({ taskId: "b" }, 2);
const C = task({ taskId: "c" }, 1);

describe("live messages", () => {
  test("a thousand changes of a task are one rendering, of the latest", () => {
    const list = listOf([A, B]);
    const heard = vi.fn();
    const ordered = vi.fn();
    list.onTask("a", heard);
    list.onView(ordered);
    for (let seq = 2; seq <= 1_001; seq++) list.push(update({ ...A, seq, progress: seq % 100 }));
    const batch = list.flush();
    expect(heard).toHaveBeenCalledTimes(1);
    expect(ordered).not.toHaveBeenCalled();
    expect(list.task("a")?.seq).toBe(1_001);
    expect(batch.events).toBe(1_000);
  });

  test("an older message changes nothing", () => {
    const list = listOf([{ ...A, seq: 5 }]);
    list.push(update({ ...A, seq: 4, progress: 9 }));
    list.push(update({ ...A, seq: 3, progress: 8 }));
    expect(list.flush().events).toBe(0);
    expect(list.task("a")?.seq).toBe(5);
  });

  test("a new task stands on top", () => {
    const list = listOf([B, C]);
    list.push(update(A));
    list.flush();
    expect(list.view().ids).toEqual(["a", "b", "c"]);
  });

  test("a task of a part that was not read yet waits for its page", () => {
    const list = listOf([A, B], true);
    list.push(update(C));
    list.flush();
    expect(list.view().ids).toEqual(["a", "b"]);
  });

  test("a task that is deleted goes", () => {
    const list = listOf([A, B]);
    list.push(update({ ...A, seq: 2 }, "DELETE"));
    list.flush();
    expect(list.view().ids).toEqual(["b"]);
  });

  test("a task that the filter does not mean any more goes, and one that it means by now comes", () => {
    const list = listOf([A, C], false, { ...EVERYTHING, status: ["PENDING"] });
    list.push(update({ ...A, seq: 2, status: "IN_PROGRESS" }));
    list.push(update({ ...B, seq: 7 }));
    list.flush();
    expect(list.view().ids).toEqual(["b", "c"]);
  });

  test("a task that was created again moves to its new place", () => {
    const list = listOf([A, B, C]);
    list.push(update({ ...C, createdAt: "2026-11-20T09:30:04.000000Z" }));
    list.flush();
    expect(list.view().ids).toEqual(["c", "a", "b"]);
  });

  test("each end is counted once", () => {
    const list = listOf([A]);
    const ended = { ...A, seq: 2, status: "SUCCESS" } as const;
    list.push(update(ended, "COMPLETE"));
    list.push(update({ ...B, seq: 2, status: "FAILED" }, "FAIL"));
    expect(list.flush()).toEqual({ events: 2, succeeded: 1, failed: 1 });
    list.push(update(ended, "COMPLETE"));
    list.push(update({ ...B, seq: 2, status: "FAILED" }, "DELETE"));
    expect(list.flush()).toEqual({ events: 0, succeeded: 0, failed: 0 });
  });
});

describe("pages", () => {
  test("the next page begins after the last row that has a place", () => {
    const list = listOf([A], true);
    list.push(update({ ...B, createdAt: "2026-11-20T09:30:03.500000Z" }));
    list.flush();
    expect(list.view().ids).toEqual(["b", "a"]);
    expect(list.cursor).toBe("after a");
  });

  test("a page does not undo what came live", () => {
    const list = listOf([{ ...A, seq: 5, progress: 50 }], true);
    list.append(page([{ ...A, seq: 4 }, B]));
    expect(list.task("a")?.progress).toBe(50);
    expect(list.view()).toEqual({ ids: ["a", "b"], hasMore: false, loaded: true });
  });

  test("what is read anew from the top lacks what was deleted meanwhile", () => {
    const list = listOf([A, B, C], true);
    list.refresh(page([A, C], true), null);
    expect(list.view().ids).toEqual(["a", "c"]);
  });

  test("rows below what is read anew stay, and so does what is known of the end", () => {
    const list = listOf([A, B, C], false);
    list.refresh(page([{ ...A, seq: 2 }, B], true), null);
    expect(list.view()).toMatchObject({ ids: ["a", "b", "c"], hasMore: false });
    expect(list.task("a")?.seq).toBe(2);
  });

  test("what is read anew further down leaves what is above alone", () => {
    const list = listOf([A, B, C], false);
    expect(list.reachesBelow(A)).toBe(true);
    list.refresh(page([C]), A);
    expect(list.view()).toMatchObject({ ids: ["a", "c"], hasMore: false });
    expect(list.reachesBelow(C)).toBe(false);
  });

  test("an empty answer empties the list", () => {
    const list = listOf([A, B]);
    list.refresh(page([]), null);
    expect(list.view().ids).toEqual([]);
  });
});

describe("a page that was asked for before what was told meanwhile", () => {
  test("takes nothing away that came after it", () => {
    const list = listOf([B]);
    list.expect(true);
    list.push(update(A));
    list.flush();
    list.refresh(page([B]), null);
    expect(list.view().ids).toEqual(["a", "b"]);
  });

  test("brings nothing back that has gone after it", () => {
    const list = listOf([A, B], true);
    list.expect(true);
    list.push(update(B, "DELETE"));
    list.push(update(C, "DELETE"));
    list.flush();
    list.append(page([B, C]));
    expect(list.view().ids).toEqual(["a"]);
  });

  test("brings nothing back that has left the filter after it", () => {
    const list = listOf([A, B], false, { ...EVERYTHING, status: ["PENDING"] });
    list.expect(true);
    list.push(update({ ...A, seq: 2, status: "SUCCESS" }));
    list.flush();
    list.refresh(page([A, B]), null);
    expect(list.view().ids).toEqual(["b"]);
  });

  test("brings what was told of its part before it was there", () => {
    const list = listOf([A], true);
    list.expect(true);
    list.push(update({ ...B, seq: 2 }));
    list.flush();
    list.append(page([C]));
    expect(list.view().ids).toEqual(["a", "b", "c"]);
  });

  test("is kept as the first, and leaves what was told meanwhile to the newer one behind it", () => {
    const list = new TaskList(EVERYTHING);
    list.expect(true);
    list.push(update(A));
    list.push(update(B, "DELETE"));
    list.flush();
    expect(list.view().loaded).toBe(false);
    list.begin(page([B, C]));
    expect(list.view()).toEqual({ ids: ["a", "c"], hasMore: false, loaded: true });
    list.refresh(page([B, C]), null);
    expect(list.view().ids).toEqual(["a", "c"]);
  });

  test("is too late when a newer one is there", () => {
    const list = listOf([A]);
    list.begin(page([A, B], true));
    expect(list.view()).toEqual({ ids: ["a"], hasMore: false, loaded: true });
  });

  test("has no say in the next", () => {
    const list = listOf([A, B]);
    list.expect(true);
    list.push(update(A, "DELETE"));
    list.flush();
    list.expect(false);
    list.refresh(page([A, B]), null);
    expect(list.view().ids).toEqual(["a", "b"]);
  });
});
