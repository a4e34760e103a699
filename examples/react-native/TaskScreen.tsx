/** A task on a phone: in the background it is not followed, and in front again nothing is missing. */

import { type Connection, useTask } from "@spectral-notify/react";
import type { ReactElement } from "react";
import { AppState, Text, View } from "react-native";

export function TaskScreen({ client, taskId }: { client: Connection; taskId: string }): ReactElement {
  const { task, events, connection, error } = useTask(taskId, { client, appState: AppState });
  if (error) return <Text>{error.message}</Text>;
  return (
    <View>
      <Text>{`connection ${connection}`}</Text>
      {task && <Text>{`task ${task.status} ${task.progress}`}</Text>}
      {events.map((event) => (
        <Text key={event.id}>{`event ${event.seq} ${event.message}`}</Text>
      ))}
    </View>
  );
}
